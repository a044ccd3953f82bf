"""Compare judges of mathematical answers: wrong answers accepted, right ones refused, errors, verdicts per second.

    python benchmarks/math_judges.py                     # three minutes
    python benchmarks/math_judges.py --show ours         # also prints its mistakes, one per line

The pairs are those of the tests (tests/tasks/math_pairs.py and math_kinds.py) and, where the data is at hand,
MATH-500's gold answers: each as models write it, and spoilt (a sign, one more, a digit, an entry, a bracket, the unit).
The judges:

- ``ours``: the verifier ``math``.
- ``math-verify for expressions``: ours, but ``verify`` compares the expressions that are left when lists, equations,
  units and so on are taken apart.
- ``math-verify, strict``: our statement finder, spelling and comparison of plain numbers and equal texts; all else by
  ``parse`` and ``verify``, to 12 decimals and 50 digits, without its removal of units.
- ``math-verify``: its ``parse`` and ``verify`` on the completion, as most trainers call them.

A verdict that takes more than 5 s, or an exception, is an error. Everything runs in this process, on one core.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from math_verifier import easy

from pacedrl.errors import JudgeError
from pacedrl.tasks.math import equality
from pacedrl.tasks.math.notation import read_number, squashed, tidy
from pacedrl.tasks.math.rewards import math_gold, math_reward
from pacedrl.tasks.math.statements import final_answer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "tasks"))

LIMIT_S = 5
STATED = [r"so \boxed{%s}.", "Answer: $%s$", "Hence the answer is $%s$.", "<answer>%s</answer>", "#### %s"]
SHIFTED = {"(": "[", "[": "(", ")": "]", "]": ")"}


class _TooLongError(BaseException):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", choices=JUDGES, help="print this judge's mistakes")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # math-verify warns that its own time limits are off
    signal.signal(signal.SIGALRM, _stop)
    pairs = [*tested(), *gold_forms()]
    rights = sum(right for _, _, right in pairs)
    wrong = f"of {len(pairs) - rights:,} wrong ones accepted"
    print(f"| judge | {wrong} | of {rights:,} right ones refused | errors | easy verdicts per CPU second |")
    print("|---|---|---|---|---|")
    for name, judge in JUDGES.items():
        mistakes = [(gold, text, right) for gold, text, right in pairs if _verdict(judge, gold, text) != right]
        errors = [pair for pair in mistakes if _verdict(judge, *pair[:2]) is None]
        accepted = sum(not right for _, _, right in mistakes) - sum(not right for _, _, right in errors)
        refused = sum(right for _, _, right in mistakes) - sum(right for _, _, right in errors)
        print(f"| {name} | {accepted} | {refused} | {len(errors)} | {_speed(judge):,.0f} |")
        for mistake in mistakes if arguments.show == name else []:
            print(*map(repr, mistake))


def tested() -> Iterator[tuple[str, str, bool]]:
    """The tests' pairs: gold answer, completion, whether it is right."""
    from math_kinds import pairs
    from math_pairs import PAIRS

    yield from (
        (pair.gold, pair.completion if pair.whole else rf"\boxed{{{pair.completion}}}", pair.right) for pair in PAIRS
    )
    yield from ((gold, text, right) for _, gold, text, right in pairs())


def gold_forms() -> Iterator[tuple[str, str, bool]]:
    """MATH-500's gold answers in five statements and several spellings, and spoilt."""
    from public_sets import gold_answers

    try:
        golds = gold_answers("one_shot_rlvr/math500.parquet")
    except FileNotFoundError:
        return
    for index, gold in enumerate(golds):
        for form in STATED:
            yield gold, form % gold, True
        for spelling in spellings(gold):
            yield gold, STATED[index % len(STATED)] % spelling, True
        for wrong in spoilt(gold, random.Random(index)):
            yield gold, rf"so \boxed{{{wrong}}}.", False


def spellings(gold: str) -> Iterator[str]:
    """Return other spellings of the same answer."""
    if r"\frac" in gold:
        yield gold.replace(r"\frac", r"\dfrac")
        yield gold.replace(r"\frac", r"\tfrac")
    yield gold.replace("(", r"\left( ").replace(")", r"\right)").replace("[", r"\left[").replace("]", r"\right]")
    yield gold.replace(", ", ",\\ ")
    if re.fullmatch(r"-?\d+", gold):
        yield f"{int(gold):,}"
        yield f"{gold}.0"
        yield f"x = {gold}"
        yield rf"\text{{Total}} = {gold}"
        yield rf"{gold} \text{{ units}}"
        yield rf"{int(gold):,}\text{{ miles}}"
    number = read_number(tidy(gold))
    if number and number.divided:
        yield f"{number.value.numerator}/{number.value.denominator}"
        if 10**6 % number.value.denominator == 0:
            yield str(float(number.value))
            yield rf"{gold} = {float(number.value)}"
        if Fraction(0) < number.value:
            yield rf"P(A) = {gold}"
    if gold.endswith(r"^\circ"):
        yield gold.replace(r"^\circ", " degrees")
        yield rf"\angle ABC = {gold}"
    if re.fullmatch(r"\\text\{\([A-E]\)\}", gold):
        yield gold[7]
        yield rf"\textbf{{({gold[7]})}}\ 25"


def spoilt(gold: str, rng: random.Random) -> Iterator[str]:
    """Return wrong answers made from the gold one."""
    if gold != "0":
        yield gold[1:] if gold.startswith("-") else f"-{gold}" if re.match(r"\d|\\[dt]?frac", gold) else f"{gold} + 1"
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    if digits:
        place = rng.choice(digits)
        yield f"{gold[:place]}{(int(gold[place]) + 1) % 10}{gold[place + 1 :]}"
        if len(digits) > 2 and "." not in gold and "_" not in gold:
            place = digits[0] if gold[digits[0]] != "0" else digits[1]
            yield f"{gold[:place]}{gold[place + 1 :]}"
    if re.fullmatch(r"-?\d+", gold):
        n = int(gold)
        yield from (
            str(n + 1),
            str(n - 1),
            f"{n}\\%" if n else "1",
            f"{n} million" if n else "2",
            f"{n}.5",
            f"{n}0" if n else "3",
        )
        yield from (f"{n} or {n + 1}", f"{n}, {n + 1}", f"{n} squared" if n not in (0, 1) else "5", f"x \\neq {n}")
    tuple_of = re.fullmatch(r"(\\left)?([(\[])(.*?)(\\right)?([)\]])", gold)
    if tuple_of and "," in gold and r"\cup" not in gold:
        _, opening, inner, _, closing = tuple_of.groups()
        first, *rest = inner.split(",")
        if rest != [first]:
            yield f"{opening}{','.join([*rest, first])}{closing}"
        yield f"{opening}{','.join([first, *rest[1:]])}{closing}"
        yield f"{SHIFTED[opening]}{inner}{closing}"
        yield f"{opening}{inner}{SHIFTED[closing]}"
    if re.fullmatch(r"\\text\{\([A-E]\)\}", gold):
        yield chr((ord(gold[7]) - 64) % 5 + 65)
    if "x" in gold and "=" not in gold and "text" not in gold:
        yield gold.replace("x", "y")
        yield gold.replace("x", "(x+1)")


def _math_verify(gold: str, text: str) -> bool:
    from math_verify import parse, verify

    return bool(
        verify(parse(f"${gold}$", parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)
    )


def _math_verify_strict(gold: str, text: str) -> bool:
    stated = final_answer(text)
    if not stated:
        return False
    texts = [tidy(math_gold(gold)), tidy(stated)]
    if squashed(texts[0]) == squashed(texts[1]):
        return True
    numbers = [read_number(each) for each in texts]
    if numbers[0] and numbers[1]:
        return numbers[0].value == numbers[1].value
    return _verified(*texts)


def _verified(gold: str, answer: str, slack: Fraction = Fraction(0)) -> bool:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    as_written = NormalizationConfig(units=False, malformed_operators=True, boxed="last")
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=as_written)
    read = [
        parse(rf"\boxed{{{text}}}", [config], "no_fallback", extraction_mode="first_match", parsing_timeout=None)
        for text in (gold, answer)
    ]
    settings = {"float_rounding": 12, "numeric_precision": 50, "allow_set_relation_comp": True}
    return bool(verify(*read, **settings, timeout_seconds=None))


def _math_verify_for_expressions(gold: str, text: str) -> bool:
    own, equality.same_values = equality.same_values, _verified
    try:
        return math_reward(gold, text) == 1.0
    finally:
        equality.same_values = own


JUDGES: dict[str, Callable[[str, str], bool]] = {
    "ours": lambda gold, text: math_reward(gold, text) == 1.0,
    "math-verify for expressions": _math_verify_for_expressions,
    "math-verify, strict": _math_verify_strict,
    "math-verify": _math_verify,
}


def _verdict(judge: Callable[[str, str], bool], gold: str, text: str) -> bool | None:
    """Return the judge's verdict; None for an error."""
    signal.alarm(LIMIT_S)
    try:
        return judge(gold, text)
    except (_TooLongError, JudgeError, Exception):
        return None
    finally:
        signal.alarm(0)


def _stop(*_: object) -> None:
    raise _TooLongError


def _speed(judge: Callable[[str, str], bool]) -> float:
    """Verdicts per second of processor time on easy answers, half of them right: numbers, units, pairs and so on."""
    rng = random.Random(0)
    pairs = [easy(rng) for _ in range(500)]
    start = time.process_time()
    for gold, answer in pairs:
        _verdict(judge, gold, rf"so \boxed{{{answer}}}.")
    return len(pairs) / (time.process_time() - start)


if __name__ == "__main__":
    main()
