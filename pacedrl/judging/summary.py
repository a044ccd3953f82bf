"""Prints a summary of verdicts: the share rewarded, the errors, and the agreement with the expected rewards."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from pacedrl.judging.candidates import Candidate
from pacedrl.text import plain
from pacedrl.view import left_out

SHOWN = 20
"""Maximum number of disagreements, and of reasons of errors, that are listed."""
KINDS = ("0", "between", "1")


def print_summary(
    console: Console, judged: Sequence[Candidate], verifier: str, seconds: float, refusal: str | None
) -> None:
    """Print the figures, and why training would refuse the verifier if ``refusal`` is not None."""
    for part in _summary(judged, verifier, seconds, refusal):
        if isinstance(part, Table):
            console.print(part)
        else:
            console.print(plain(part), markup=False, highlight=False, soft_wrap=True)


def _summary(judged: Sequence[Candidate], verifier: str, seconds: float, refusal: str | None) -> Iterator[str | Table]:
    rewards = [one.completion.reward for one in judged if one.completion.reward is not None]
    rate = len(judged) / seconds
    yield f"{len(judged):,} rows by '{verifier}' in {seconds:.1f} s, imports included: {rate:,.0f} verdicts/s"
    if rewards:
        rewarded = sum(reward > 0.0 for reward in rewards)
        yield (
            f"rewarded: {rewarded:,} of {len(rewards):,} judged ({rewarded / len(rewards):.1%}), "
            f"mean reward {sum(rewards) / len(rewards):.3f}{left_out(1.0 - len(rewards) / len(judged))}"
        )
    yield from _errors(judged)
    if compared := [one for one in judged if one.expected is not None]:
        yield from _agreement(compared)
    if refusal is not None:
        yield f"training would refuse this verifier: {refusal}"


def _errors(judged: Sequence[Candidate]) -> Iterator[str]:
    errors = Counter(one.completion.error for one in judged if one.completion.error is not None)
    if errors:
        yield f"errors: {errors.total():,}, which have no reward"
    shown = errors.most_common(SHOWN)
    for reason, count in shown:
        yield f"  {count:,} × {reason}"
    if len(errors) > SHOWN:
        yield f"  and {errors.total() - sum(count for _, count in shown):,} for other reasons"


def _agreement(judged: Sequence[Candidate]) -> Iterator[str | Table]:
    """Yield a table of expected and actual rewards, and the rows where they differ."""
    counts = Counter((_kind(one.expected), _kind(one.completion.reward)) for one in judged)
    expected = [kind for kind in KINDS if any(counts[kind, got] for got in (*KINDS, "error"))]
    got = [kind for kind in (*KINDS, "error") if kind in ("0", "1") or any(counts[row, kind] for row in KINDS)]
    table = Table("expected", *(kind if kind == "error" else f"judged {kind}" for kind in got), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in expected:
        table.add_row(kind, *(f"{counts[kind, one]:,}" for one in got))
    yield table
    total = sum(one.completion.reward is not None for one in judged)
    disagreements = [one for one in judged if one.disagrees]
    if total:
        agreeing = total - len(disagreements)
        yield f"as expected: {agreeing:,} of {total:,} judged ({agreeing / total:.1%})"
    for one in disagreements[:SHOWN]:
        gold = one.prompt.answer
        yield (
            f"  row {one.row}: expected {one.expected:g}, got {one.completion.reward:g}"
            f"{'' if gold is None else f', answer {_short(gold, 60)}'}, completion {_short(one.completion.text, 100)}"
        )
    if len(disagreements) > SHOWN:
        yield f"  and {len(disagreements) - SHOWN:,} more"


def _kind(reward: float | None) -> str:
    if reward is None:
        return "error"
    return {0.0: "0", 1.0: "1"}.get(reward, "between")


def _short(value: object, width: int) -> str:
    """Return the value on one line and in quotes; a longer value is cut to its end, where answers usually are."""
    line = " ".join(str(value).split())
    return f"'{line}'" if len(line) <= width else f"'…{line[1 - width :]}'"
