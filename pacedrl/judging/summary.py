"""What verdicts amount to: the share rewarded, the errors, and how far they agree with what was expected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from pacedrl.judging.candidates import Candidate
from pacedrl.report.text import plain
from pacedrl.tasks.verifiers import Verdict
from pacedrl.view import left_out

SHOWN = 20
"""Disagreements, and reasons of errors, that are listed."""
SAME_REWARD = 1e-6
KINDS = ("0", "between", "1")


@dataclass(frozen=True)
class Judged:
    """A row, counted from 1, with its verdict."""

    row: int
    candidate: Candidate
    verdict: Verdict

    @property
    def disagrees(self) -> bool:
        """Whether there is a reward and it is not the one expected."""
        reward, expected = self.verdict.reward, self.candidate.expected
        return reward is not None and expected is not None and abs(reward - expected) > SAME_REWARD


def print_summary(
    console: Console, judged: Sequence[Judged], verifier: str, seconds: float, refusal: str | None
) -> None:
    """Print the figures. ``refusal`` says why training would not start with this verifier, if it would not."""
    rewards = [one.verdict.reward for one in judged if one.verdict.reward is not None]
    rate = len(judged) / seconds
    _print(
        console, f"{len(judged):,} rows by '{verifier}' in {seconds:.1f} s, imports included: {rate:,.0f} verdicts/s"
    )
    if rewards:
        rewarded = sum(reward > 0.0 for reward in rewards)
        _print(
            console,
            f"rewarded: {rewarded:,} of {len(rewards):,} judged ({rewarded / len(rewards):.1%}), "
            f"mean reward {sum(rewards) / len(rewards):.3f}{left_out(1.0 - len(rewards) / len(judged))}",
        )
    _print_errors(console, judged)
    if any(one.candidate.expected is not None for one in judged):
        _print_agreement(console, [one for one in judged if one.candidate.expected is not None])
    if refusal is not None:
        _print(console, f"training would refuse this verifier: {refusal}")


def _print_errors(console: Console, judged: Sequence[Judged]) -> None:
    errors = Counter(one.verdict.error for one in judged if one.verdict.error is not None)
    if not errors:
        return
    _print(console, f"errors: {errors.total():,}, which have no reward")
    for reason, count in errors.most_common(SHOWN):
        _print(console, f"  {count:,} × {reason}")
    if len(errors) > SHOWN:
        rest = errors.total() - sum(count for _, count in errors.most_common(SHOWN))
        _print(console, f"  and {rest:,} for other reasons")


def _print_agreement(console: Console, judged: Sequence[Judged]) -> None:
    counts = Counter((_kind(one.candidate.expected), _kind(one.verdict.reward)) for one in judged)
    expected = [kind for kind in KINDS if any(counts[kind, got] for got in (*KINDS, "error"))]
    got = [kind for kind in (*KINDS, "error") if kind in ("0", "1") or any(counts[row, kind] for row in KINDS)]
    table = Table("expected", *(kind if kind == "error" else f"judged {kind}" for kind in got), box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in expected:
        table.add_row(kind, *(f"{counts[kind, one]:,}" for one in got))
    console.print(table)
    with_reward = [one for one in judged if one.verdict.reward is not None]
    disagreements = [one for one in with_reward if one.disagrees]
    if with_reward:
        agreeing = len(with_reward) - len(disagreements)
        _print(console, f"as expected: {agreeing:,} of {len(with_reward):,} judged ({agreeing / len(with_reward):.1%})")
    for line in _listed(disagreements):
        _print(console, line)


def _kind(reward: float | None) -> str:
    if reward is None:
        return "error"
    return {0.0: "0", 1.0: "1"}.get(reward, "between")


def _listed(disagreements: Sequence[Judged]) -> Iterator[str]:
    for one in disagreements[:SHOWN]:
        answer = "" if one.candidate.prompt.answer is None else f", answer {_short(one.candidate.prompt.answer, 60)}"
        yield (
            f"  row {one.row}: expected {one.candidate.expected:g}, got {one.verdict.reward:g}{answer}, "
            f"completion {_short(one.candidate.text, 100)}"
        )
    if len(disagreements) > SHOWN:
        yield f"  and {len(disagreements) - SHOWN:,} more"


def _short(value: object, width: int) -> str:
    """On one line and in quotes; of what is longer the end, where answers stand."""
    line = " ".join(str(value).split())
    return f"'{line}'" if len(line) <= width else f"'…{line[1 - width :]}'"


def _print(console: Console, line: str) -> None:
    console.print(plain(line), markup=False, highlight=False, soft_wrap=True)
