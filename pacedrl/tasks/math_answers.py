r"""Whether two mathematical answers are equal, as a grader would say: exact where both are exact, and never generous.

Numbers, lists, sets, tuples, intervals, matrices, equations and inequalities are taken apart as text, and math-verify
reads what remains.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from pacedrl.tasks.math_notation import (
    LONGEST_ANSWER,
    MOST_PARTS,
    Number,
    enclosed,
    items,
    read_number,
    split,
    squashed,
    tidy,
    tractable,
)
from pacedrl.tasks.math_values import clear_caches, near, proportional, same_expressions

CPU_LIMIT_S = 2.0
"""Processor seconds for one comparison, where signals work (the main thread, not Windows); beyond it is not equal."""

_RELATION = re.compile(r"\\leq|\\geq|\\neq|<|>|=")
_FLIPPED = {r"\leq": r"\geq", r"\geq": r"\leq", "<": ">", ">": "<"}
_NAMED = re.compile(r"(?P<name>[a-zA-Z](?:_\{?\w+\}?)?(?: ?\([a-z]\))?) ?(?:=|\\in) ?(?P<value>[^=<>]+)")
_INTERVALS = {"(": ")]", "[": ")]"}
_MATRIX = re.compile(r"\\begin\{([bpv]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_ROW, _CELL, _UNION, _COLON = (re.compile(separator) for separator in (r"\\\\", "&", r"\\cup", ":"))
_UNIT = re.compile(r"(?P<value>.*[\d})!]|.*\\pi) ?(?P<words>[a-zA-Z/. ]+?)(?P<power> ?\^ ?\{?[23]\}?)?")
_ONE_LETTER = frozenset("mgshLlNJWVAKCF")  # apart from its number; "5m" is 5 times m
_NO_UNITS = re.compile(
    r"(?:and|or|not|isn|is|wrong|false|no|none|never|plus|minus|times|over|divided|than|x|hundred|thousand"
    r"|[mb]illion|trillion|dozen|half|third|quarter|to|the|of|if|but|i|e|pi|ln|log|sin|cos|tan|cot|sqrt|am|pm|mod)s?",
    re.IGNORECASE,
)
_SAME_UNITS = {
    **dict.fromkeys(["centimeter", "centimetre"], "cm"),
    **dict.fromkeys(["meter", "metre"], "m"),
    **dict.fromkeys(["kilometer", "kilometre"], "km"),
    **dict.fromkeys(["millimeter", "millimetre"], "mm"),
    **dict.fromkeys(["degree", "deg"], "degree"),
    "inche": "inch",
    "in": "inch",
    "feet": "foot",
    "ft": "foot",
    "mile": "mi",
    "kilogram": "kg",
    "gram": "g",
    "hour": "h",
    "hr": "h",
    "minute": "min",
    "second": "s",
    "sec": "s",
    "liter": "l",
    "litre": "l",
}


@dataclass(frozen=True)
class MathOptions:
    """What counts as the same answer.

    ``percent``: "either" takes 50% for 50 and for 0.5, "value" only for 0.5, "sign" only for 50.
    ``units``: "lenient" takes a missing unit, "strict" wants the gold answer's; different ones never match.
    ``tolerance``: relative, where one of two numbers is a decimal; 0 or more, less than 1.
    ``ordered``: whether order matters in tuples; it never does in sets and bare lists.
    ``evaluated``: whether a plain number must be answered by a plain number, so that the question 9 + 9 is no answer to
    itself. A fraction need not be in lowest terms, unless it is a whole number.
    ``last_number``: whether the last number counts where a completion states no answer. Off, because then a prompt
    repeated or a train of thought cut off may be right by accident.
    Raises ValueError on other values.
    """

    percent: Literal["either", "value", "sign"] = "either"
    units: Literal["lenient", "strict"] = "lenient"
    tolerance: float = 1e-6
    ordered: bool = True
    evaluated: bool = True
    last_number: bool = False

    def __post_init__(self) -> None:
        if self.percent not in ("either", "value", "sign"):
            raise ValueError(f"expected percent either, value or sign, got {self.percent!r}")
        if self.units not in ("lenient", "strict"):
            raise ValueError(f"expected units lenient or strict, got {self.units!r}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"expected 0 <= tolerance < 1, got {self.tolerance}")


def equal_answers(gold: str, answer: str, options: MathOptions) -> bool:
    """Whether ``answer`` states the value of ``gold``. Raises nothing but MemoryError, whatever the texts are."""
    if not answer.strip() or max(len(gold), len(answer)) > LONGEST_ANSWER:
        return squashed(gold) == squashed(answer) != ""
    try:
        with _cpu_limit(CPU_LIMIT_S):
            return _Comparison(options).same(_tidied(gold), tidy(answer))
    except (_TooLongError, RecursionError):
        clear_caches()
    except MemoryError:  # says nothing about the answer
        raise
    except Exception:  # the last resort: whatever fails on an answer, it was not shown to be right
        return False
    return False


class _TooLongError(BaseException):
    """Out of processor time. Not an Exception: sympy and math-verify catch those."""


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)  # again and again, should something swallow it
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:  # again, because the signal may have come just before the line above
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before or signal.SIG_DFL)


@lru_cache(maxsize=1024)
def _tidied(gold: str) -> str:
    return tidy(gold)


@dataclass(frozen=True)
class _Comparison:
    options: MathOptions

    def same(self, gold: str, answer: str) -> bool:
        """Of two tidy texts. Each step takes both apart the same way, so it ends where no step applies."""
        if not gold or not answer:
            return False
        if squashed(gold) == squashed(answer):
            return True
        numbers = read_number(gold), read_number(answer)
        if numbers[0] and numbers[1]:
            return self._same_numbers(numbers[0], numbers[1])
        for step in (self._named, self._intervals, self._collections, self._unions, self._matrices, self._relations):
            if (verdict := step(gold, answer)) is not None:
                return verdict
        ratios = self._ratios(gold, answer)
        return self._same_values(gold, answer) if ratios is None else ratios

    def _same_numbers(self, gold: Number, answer: Number) -> bool:
        if self.options.evaluated and answer.divided and not gold.divided and answer.value.denominator == 1:
            return False  # 84/7 for 12
        tolerance = Fraction(str(self.options.tolerance)) if gold.decimal or answer.decimal else Fraction(0)
        scales = [Fraction(1)] if gold.percent == answer.percent else self._percent_scales(answer.percent)
        return any(near(gold.value, answer.value * scale, tolerance) for scale in scales)

    def _percent_scales(self, answer_is_percent: bool) -> list[Fraction]:
        """What to multiply the answer by, where one of the two carries a percent sign."""
        by_value = Fraction(1, 100) if answer_is_percent else Fraction(100)
        return {"either": [Fraction(1), by_value], "value": [by_value], "sign": [Fraction(1)]}[self.options.percent]

    def _named(self, gold: str, answer: str) -> bool | None:
        """x = 5 is 5, but not y = 5."""
        named = _NAMED.fullmatch(gold), _NAMED.fullmatch(answer)
        if named[0] and named[1]:
            if squashed(named[0]["name"]) != squashed(named[1]["name"]):
                return self._relations(gold, answer)
            if self.same(named[0]["value"], named[1]["value"]):
                return True
            return self._relations(gold, answer)
        if (named[0] or named[1]) and not (_RELATION.search(gold) and _RELATION.search(answer)):
            return self.same(named[0]["value"] if named[0] else gold, named[1]["value"] if named[1] else answer)
        return None

    def _intervals(self, gold: str, answer: str) -> bool | None:
        """1 < x \\leq 2 is (1, 2]."""
        intervals = _interval(gold), _interval(answer)
        if bool(intervals[0]) == bool(intervals[1]) or (_RELATION.search(gold) and _RELATION.search(answer)):
            return None
        return self.same(intervals[0] or gold, intervals[1] or answer)

    def _collections(self, gold: str, answer: str) -> bool | None:
        (gold_kind, golds), (kind, answers) = _parts(gold), _parts(answer)
        kinds = {gold_kind, kind}
        if kinds == {"one"}:
            return None
        if len(golds) != len(answers) or len(golds) > MOST_PARTS:
            return False
        if len(kinds) > 1 and not kinds <= {"list", "set", "one"} and not kinds <= {"list", "()"}:
            return False
        if "set" in kinds or kinds == {"list"} or (kinds <= {"list", "()"} and not self.options.ordered):
            return self._match(golds, answers)
        return all(map(self.same, golds, answers))

    def _match(self, golds: list[str], answers: list[str]) -> bool:
        """Every gold part equals another answer part; which of several equal ones does not matter."""
        left = list(answers)
        for gold in golds:
            found = next((index for index, answer in enumerate(left) if self.same(gold, answer)), None)
            if found is None:
                return False
            del left[found]
        return not left

    def _unions(self, gold: str, answer: str) -> bool | None:
        golds, answers = split(gold, _UNION), split(answer, _UNION)
        if len(golds) == len(answers) == 1:
            return None
        return len(golds) == len(answers) <= MOST_PARTS and self._match(golds, answers)

    def _matrices(self, gold: str, answer: str) -> bool | None:
        matrices = _MATRIX.fullmatch(gold), _MATRIX.fullmatch(answer)
        if not (matrices[0] or matrices[1]):
            return None
        if not (matrices[0] and matrices[1]) or (matrices[0][1] == "v") != (matrices[1][1] == "v"):
            return False
        golds, answers = ([split(row, _CELL) for row in split(match[2], _ROW) if row] for match in matrices if match)
        if [len(row) for row in golds] != [len(row) for row in answers] or sum(map(len, golds)) > MOST_PARTS:
            return False
        return all(all(map(self.same, *rows)) for rows in zip(golds, answers, strict=True))

    def _relations(self, gold: str, answer: str) -> bool | None:
        (gold_sides, gold_signs), (sides, signs) = _relation(gold), _relation(answer)
        if not gold_signs and not signs:
            return None
        if gold_signs != signs:
            return False
        if all(map(self.same, gold_sides, sides)):
            return True
        if len(signs) > 1 or not all(map(tractable, (*gold_sides, *sides))):
            return False
        if signs[0] in ("=", r"\neq") and all(map(self.same, gold_sides, sides[::-1])):
            return True
        differences = [f"{left} - ({right})" for left, right in (gold_sides, sides)]
        return proportional(differences[0], differences[1], positive=signs[0] not in ("=", r"\neq"))

    def _ratios(self, gold: str, answer: str) -> bool | None:
        golds, answers = split(gold, _COLON), split(answer, _COLON)
        if len(golds) == len(answers) == 1:
            return None
        return len(golds) == len(answers) <= MOST_PARTS and all(map(self.same, golds, answers))

    def _same_values(self, gold: str, answer: str) -> bool:
        stripped = [enclosed(text, "(", ")") or text for text in (gold, answer)]
        if stripped != [gold, answer]:
            return self.same(*(text.strip() for text in stripped))
        (gold_value, gold_unit), (value, unit) = _without_unit(gold), _without_unit(answer)
        if gold_unit or unit:
            known = unit == gold_unit or not (unit and gold_unit)
            given = bool(unit) or not gold_unit or self.options.units == "lenient"
            return known and given and self.same(gold_value, value)
        percents = [text.endswith("%") for text in (gold, answer)]
        if percents[0] or percents[1]:
            texts = [text.rstrip("%").strip() for text in (gold, answer)]
            scales = [Fraction(1)] if all(percents) else self._percent_scales(percents[1])
            return "%" not in "".join(texts) and any(
                self._same_expressions(texts[0], texts[1], scale) for scale in scales
            )
        return self._same_expressions(gold, answer, Fraction(1))

    def _same_expressions(self, gold: str, answer: str, scale: Fraction) -> bool:
        if (self.options.evaluated and read_number(gold)) or not (tractable(gold) and tractable(answer)):
            return False
        return same_expressions(gold, answer, scale, Fraction(str(self.options.tolerance)))


def _parts(text: str) -> tuple[str, list[str]]:
    """The kind of collection ("one" for none, "list" for a bare one, "set" or its brackets) and its elements."""
    parts = items(text)
    if len(parts) > 1:
        return "list", parts
    inner = enclosed(text, r"\{", r"\}")
    if inner is not None:
        return "set", items(inner)
    for opening, closings in _INTERVALS.items():
        for closing in closings:
            inner = enclosed(text, opening, closing)
            if inner is not None and len(parts := items(inner)) > 1:
                return opening + closing, parts
    return "one", [text]


def _relation(text: str) -> tuple[list[str], list[str]]:
    """Sides and signs of an equation or inequality, the smaller side first."""
    sides, signs = split(text, _RELATION), _RELATION.findall(text)
    if len(sides) != len(signs) + 1:  # a sign stands within brackets
        return [text], []
    if signs and set(signs) <= {r"\geq", ">"}:
        return sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    return sides, signs


def _interval(text: str) -> str | None:
    """The interval that an inequality of a single letter describes."""
    sides, signs = _relation(text)
    if not signs or not set(signs) <= {"<", r"\leq"}:
        return None
    start, end = ("(" if signs[0] == "<" else "["), (")" if signs[-1] == "<" else "]")
    match [re.fullmatch("[a-zA-Z]", side) is not None for side in sides]:
        case [False, True, False]:
            return f"{start}{sides[0]}, {sides[2]}{end}"
        case [True, False]:
            return rf"(-\infty, {sides[1]}{end}"
        case [False, True]:
            return rf"{start}{sides[0]}, \infty)"
    return None


def _without_unit(text: str) -> tuple[str, str]:
    """The value and its unit in one spelling, "" where the text has none."""
    match = _UNIT.fullmatch(text)
    if match is None:
        return text, ""
    words = re.findall(r"[a-zA-Z]+|/", match["words"])
    apart = text[match.end("value")] == " "
    lonely = len(words) == 1 and len(words[0]) == 1
    if not 1 <= len(words) <= 4 or any(map(_NO_UNITS.fullmatch, words)):
        return text, ""
    if lonely and not (apart and words[0] in _ONE_LETTER):
        return text, ""
    power = "".join(re.findall(r"\d", match["power"] or ""))
    if words[0].lower() in ("square", "sq", "cubic", "cu"):
        power = "2" if words[0].lower().startswith("s") else "3"
        words = words[1:]
    singular = [word.lower().removesuffix("s") or word.lower() for word in words]
    return match["value"].strip(), " ".join(_SAME_UNITS.get(word, word) for word in singular) + power
