"""Decides whether two mathematical answers are equal: exactly if both are exact, and never generously.

Lists, sets, intervals, matrices, equations, units and plain numbers are split as text; `pacedrl.tasks.math.values`
reads and evaluates the expressions that remain.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from pacedrl.tasks.math.notation import (
    Number,
    enclosed,
    items,
    last_place,
    levels,
    read_number,
    split,
    squashed,
    tidy,
    without_unit,
)
from pacedrl.tasks.math.values import proportional, same_values

LONGEST_ANSWER = 500
"""Maximum length in characters of an answer read as mathematics; a longer answer is compared as text."""

_RELATION, _INEQUALITY = re.compile(r"\\leq|\\geq|\\neq|<|>|="), re.compile(r"\\[lgn]eq|<|>")
_FLIPPED = {r"\leq": r"\geq", r"\geq": r"\leq", "<": ">", ">": "<"}
_EQUALITY = re.compile(r"=|\\(?:approx|equiv(?=.*mod)|in)(?![a-zA-Z])")
_NAME = (  # x_1, f(2), P(A), \angle ABC, |AB|, (x, y), Area
    r"(?!\\?(?:sqrt|frac|ln|log|exp|lim|sum|int|pi|e|i|not|never|isn|wrong|minus|negative|half|twice)(?![a-zA-Z]))"
    r"(?:\|\\?[a-zA-Z{}]+\||\[(?:\\triangle )?[A-Z]+\]|\(\\?[a-z]+(?:, ?\\?[a-z]+)+\)"
    r"|(?:\\?[a-zA-Z]++ ?|(?<=\w)\{\w+\})+)"
    r"'?(?: ?_(?:\w|\{[^{}]*\}))?(?:\^\{-1\})?(?: ?\([^()]*\)| ?\[[^\[\]]*\])?"
)
_NAMED = re.compile(_NAME)
_COMBINED = re.compile(rf"{_NAME}(?: ?(?:[-+/]|\\cdot|\\times) ?{_NAME}){{0,3}}|\\frac\{{[a-zA-Z]+\}}\{{[a-zA-Z]+\}}")
_CHOICE = re.compile(r"(?:(?:option|choice) )?\(?([A-J])(?:[).:]+(?!\s*[-+*/^=])\s*(?P<text>.*)|(?=\Z))", re.IGNORECASE)
_SEVERAL = re.compile(r"\([A-J]\)|\b(?:or|not|wrong|incorrect)\b|n't")
_ASSIGNED = re.compile(r"\((\\?[a-zA-Z]+(?:, ?\\?[a-zA-Z]+)+)\) ?= ?(\(.*\))")
_WITHIN = re.compile(r"\A\|([a-zA-Z])\| ?(<|\\leq) ?([^-+<>=,]+)\Z")
_OR = re.compile(r"(?<![a-zA-Z])(?:or|OR)(?![a-zA-Z])|\\pm")
_TIME = re.compile(r"\d?\d:[0-5]\d(?::[0-5]\d)?")
_UNION, _RATIO, _ROW, _CELL = (re.compile(separator) for separator in (r"\\cup", ":", r"\\\\", "&"))
_BRACKETS = [(r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", "]"), ("[", ")")]
_UNORDERED = frozenset({"list", r"\{\}", "one", "union"})


@dataclass(frozen=True)
class MathOptions:
    """Which answers count as equal.

    ``percent``: "value": a percent sign means a hundredth. "either": likewise, but an answer may leave out the sign of
    the gold answer (a gold 50% accepts 50%, 0.5 and 50; a gold 50 refuses 50%). "sign": it is a unit (50% is 50).
    ``units``: "lenient" accepts a missing unit, "strict" requires the gold answer's unit; different units never match.
    ``tolerance``: relative tolerance in [0, 1) if one value is a decimal and neither is a whole number. None accepts
    values that round to the decimal, up to 1e-6.
    ``ordered``: order matters in tuples. It never does in sets and bare lists.
    ``evaluated``: a plain number must be answered by a plain number: 9 + 9 is not accepted for 18.
    ``last_number``: the last number counts if no answer is stated. It may be right by accident.
    Raises ValueError for other values.
    """

    percent: Literal["either", "value", "sign"] = "either"
    units: Literal["lenient", "strict"] = "lenient"
    tolerance: float | None = None
    ordered: bool = True
    evaluated: bool = True
    last_number: bool = False

    def __post_init__(self) -> None:
        for name, known in (("percent", ("either", "value", "sign")), ("units", ("lenient", "strict"))):
            if getattr(self, name) not in known:
                raise ValueError(f"expected {name} {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.tolerance is not None and not 0 <= self.tolerance < 1:
            raise ValueError(f"expected 0 <= tolerance < 1, got {self.tolerance}")


def equal_answers(gold: str, answer: str, options: MathOptions) -> bool:
    """Whether ``answer`` states the value of ``gold``."""
    if max(len(gold), len(answer)) > LONGEST_ANSWER or max(levels(answer)) > 20:
        return squashed(gold) == squashed(answer)
    return _Comparison(options).same(tidy(gold), tidy(answer))


@dataclass(frozen=True)
class _Comparison:
    options: MathOptions

    def same(self, gold: str, answer: str) -> bool:
        """Compare two tidy texts by the first step that applies, which may split both and compare the parts."""
        if not gold or not answer:
            return False
        if squashed(gold) == squashed(answer):
            return True
        gold, answer = _spread(gold), _spread(answer)
        percents = gold.endswith("%"), answer.endswith("%")
        if all(percents) or (any(percents) and self.options.percent == "sign"):
            return self.same(gold.rstrip("% "), answer.rstrip("% "))
        if percents[0] and without_unit(answer)[1]:
            return False  # 20 days for 20%
        if percents[0] and self.options.percent == "either" and self.same(gold.rstrip("% "), answer):
            return True
        numbers = read_number(gold), read_number(answer)
        if numbers[0] and numbers[1]:
            return self._same_numbers(numbers[0], numbers[1], self._slack(gold, answer))
        steps = (self._choices, self._equalities, self._intervals, self._collections, self._relations, self._units)
        for step in steps:
            if (verdict := step(gold, answer)) is not None:
                return verdict
        plain = self.options.evaluated and numbers[0]
        return not plain and self._same_values(gold, answer, self._slack(gold, answer))

    def _same_numbers(self, gold: Number, answer: Number, slack: Fraction) -> bool:
        if self.options.evaluated and answer.divided and not gold.divided and answer.value.denominator == 1:
            return False  # 84/7 for 12
        whole = 1 in (gold.value.denominator, answer.value.denominator)
        return abs(gold.value - answer.value) <= (0 if whole else slack * abs(gold.value))

    def _slack(self, gold: str, answer: str) -> Fraction:
        """Return the relative tolerance: 0 between exact values, else as much as the decimals are rounded."""
        places = [place for place in map(last_place, (gold, answer)) if place]
        if places and self.options.tolerance is not None:
            return Fraction(str(self.options.tolerance))
        return min(max(places) / len(places), Fraction(1, 10**6)) if places else Fraction(0)

    def _same_values(self, gold: str, answer: str, slack: Fraction) -> bool:
        hundredths = [f"({text[:-1]})/100" if text.endswith("%") else text for text in (gold, answer)]
        return same_values(hundredths[0], hundredths[1], slack)

    def _choices(self, gold: str, answer: str) -> bool | None:
        """Compare choices: B equals (B), b and (B) 25; ABD equals A, B, D."""
        (golds, gold_text), (letters, text) = _choice(gold), _choice(answer)
        if golds and letters:
            return golds == letters.upper() and (not gold_text or not text or self.same(gold_text, text))
        if golds and gold_text:
            return self.same(gold_text, answer)
        return True if text and answer.startswith("(") and self.same(gold, text) else None

    def _equalities(self, gold: str, answer: str) -> bool | None:
        """Compare equalities: x = 5 equals 5, but not y = 5; 10/4 = 2.5 equals 2.5, because it is true."""
        (gold_name, golds), (name, answers) = _sides(gold, _NAMED), _sides(answer, _NAMED)
        if [gold, answer] == [*golds, *answers]:
            return None
        if not gold_name and len(golds) == 1 and not name:
            name, answers = _sides(answer, _COMBINED)
        unlike = gold_name and name and squashed(gold_name) != squashed(name)
        if not unlike and self._true(golds) and self._true(answers):
            ends = [(one, other) for one in {golds[0], golds[-1]} for other in {answers[0], answers[-1]}]
            if any(self.same(one, other) for one, other in ends):
                return True
        return self._relations(gold, answer)

    def _true(self, sides: list[str]) -> bool:
        """Whether all sides are equal, up to the rounding of decimals."""
        exactly = _Comparison(MathOptions(percent="value", evaluated=False))
        return all(
            exactly.same(left, right)
            or exactly._same_values(left, right, max((last_place(side) or Fraction(0)) / 2 for side in (left, right)))
            for left, right in pairwise(sides)
        )

    def _intervals(self, gold: str, answer: str) -> bool | None:
        r"""Compare an interval with an inequality: 1 < x \leq 2 equals (1, 2]."""
        intervals = _interval(gold), _interval(answer)
        if bool(intervals[0]) == bool(intervals[1]) or (_RELATION.search(gold) and _RELATION.search(answer)):
            return None
        return self.same(intervals[0] or gold, intervals[1] or answer)

    def _collections(self, gold: str, answer: str) -> bool | None:
        (gold_kind, golds), (kind, answers) = _parts(gold), _parts(answer)
        kinds = {gold_kind, kind}
        if kinds == {"one"}:
            return None
        if gold_kind == "ratio" and not _TIME.fullmatch(gold) and kind in ("ratio", "one"):
            return self._same_ratio(golds, answers)
        if "one" in kinds and r"\emptyset" in (*golds, *answers):
            return False  # the set that contains the empty set
        tuples = kinds <= {"list", "()"}
        unordered = kinds <= _UNORDERED or kinds in ({"both"}, {"either"}) or (tuples and not self.options.ordered)
        if len(golds) != len(answers) or not (unordered or tuples or len(kinds) == 1):
            return False
        return self._same_in_any_order(golds, answers) if unordered else all(map(self.same, golds, answers))

    def _same_in_any_order(self, golds: list[str], answers: list[str]) -> bool:
        left = list(answers)
        for gold in golds:
            found = next((index for index, answer in enumerate(left) if self.same(gold, answer)), None)
            if found is None:
                return False
            del left[found]
        return True

    def _same_ratio(self, golds: list[str], answers: list[str]) -> bool:
        """Compare ratios: 3:2 equals 6:4 and 3/2."""
        answers = answers if len(answers) > 1 else [*answers, "1"]
        parts = zip(golds, answers, strict=False)
        quotients = [(f"({gold})/({golds[0]})", f"({part})/({answers[0]})") for gold, part in parts]
        equal = (self._same_values(*quotient, Fraction(0)) for quotient in quotients)
        return golds == answers or (len(golds) == len(answers) and all(equal))

    def _relations(self, gold: str, answer: str) -> bool | None:
        (gold_sides, gold_signs), (sides, signs) = _relation(gold), _relation(answer)
        if not gold_signs and not signs:
            return None
        if gold_signs != signs:
            return False
        if all(map(self.same, gold_sides, sides)):
            return True
        if len(signs) > 1:
            return False
        symmetric = signs[0] in ("=", r"\neq")
        if symmetric and all(map(self.same, gold_sides, sides[::-1])):
            return True
        differences = [f"{left} - ({right})" for left, right in (gold_sides, sides)]
        return proportional(differences[0], differences[1], positive=not symmetric)

    def _units(self, gold: str, answer: str) -> bool | None:
        bare = [(enclosed(text, "(", ")") or text).strip() for text in (gold, answer)]
        if bare != [gold, answer]:
            return self.same(*bare)
        (gold_value, gold_unit), (value, unit) = without_unit(gold), without_unit(answer)
        if not (gold_unit or unit):
            return None
        missing = not unit and self.options.units == "lenient"
        if {gold_unit, unit} in ({"degree", ""}, {"degree", "radian"}) and r"\pi" in gold_value + value:
            turned = [rf"({v})\pi/180" if u == "degree" else v for v, u in ((gold_value, gold_unit), (value, unit))]
            return self._same_values(turned[0], turned[1], Fraction(0))
        return (unit == gold_unit or not gold_unit or missing) and self.same(gold_value, value)


def _choice(text: str) -> tuple[str, str]:
    """Return the letters of the choices that the text names, "" for none, and the text after a single letter."""
    parts = list(text) if re.fullmatch("[A-J]{2,}", text) else [part.strip("() ") for part in items(text)]
    if len(parts) > 1 and all(re.fullmatch("[A-J]", part) for part in parts):
        return "".join(sorted(parts)), ""
    match = _CHOICE.fullmatch(text)
    return (match[1], match["text"] or "") if match and not _SEVERAL.search(match["text"] or "") else ("", "")


def _sides(text: str, name: re.Pattern[str]) -> tuple[str, list[str]]:
    """Return the name on the left of an equality, "" if there is none, and its values."""
    sides = split(text, _EQUALITY)
    several = sum("=" in item for item in items(text)) > 1
    if len(sides) == 1 or several or not sides[-1] or len(split(text, _INEQUALITY)) > 1:
        return "", [text]
    if not name.fullmatch(sides[0]):
        return "", sides if sides[0] else sides[1:]
    if len(items(sides[-1])) > 1:  # x = 1, 2 states two solutions, not a pair
        sides[-1] = rf"\{{{sides[-1]}\}}"
    return sides[0], sides[1:]


def _parts(text: str) -> tuple[str, list[str]]:
    """Return the kind of collection ("one" for none, "both" for x > 1 and x < 5, brackets, ...) and its elements."""
    for brackets in _BRACKETS:
        inner = enclosed(text, *brackets)
        several = inner and len(split(inner, _OR)) == 1 and len(items(inner.replace(r"\pm", "+"))) > 1
        if inner is not None and (several or brackets[0] == r"\{"):
            return "".join(brackets), items(inner)
    if len(parts := items(text)) > 1:
        return _list_kind(text, parts)
    for kind, separator in (("union", _UNION), ("ratio", _RATIO)):
        if len(parts := split(text, separator)) > 1:
            return kind, parts
    if matrix := re.fullmatch(r"\\begin\{([pv]matrix)\}(.*)\\end\{\1\}", text):
        rows = [split(row, _CELL) for row in split(matrix[2], _ROW) if row]
        return f"{matrix[1]} {[len(row) for row in rows]}", [cell for row in rows for cell in row]
    return "one", [text]


def _list_kind(text: str, parts: list[str]) -> tuple[str, list[str]]:
    """Return the kind and the elements of a list without brackets.

    Alternatives are a set, but x = 1 or y = 2 is "either"; x = 1, y = 2 may be a tuple, which is sorted by its names.
    """
    names = [side for part in parts if _NAMED.fullmatch(side := split(part, _RELATION)[0]) and side != part]
    if len(split(text, _OR)) > 1 or r"\pm" in text:
        return ("either" if len(set(names)) > 1 else r"\{\}"), parts
    if _INEQUALITY.search(text):
        return ("both" if re.search(r"\band\b", text) else "list"), parts
    if len(set(names)) < len(names):
        return r"\{\}", parts
    return "list", sorted(parts) if len(names) == len(parts) and all(re.fullmatch("[a-z]", n) for n in names) else parts


def _spread(text: str) -> str:
    """Write (x, y) = (3, 2) as x = 3, y = 2, and |x| < 1 as -1 < x < 1."""
    text = _WITHIN.sub(r"-\3 \2 \1 \2 \3", text)
    match = _ASSIGNED.fullmatch(text)
    names, values = (items(match[1]), items(enclosed(match[2], "(", ")") or "")) if match else ([], [])
    return ", ".join(map("{} = {}".format, names, values)) if names and len(names) == len(values) else text


def _relation(text: str) -> tuple[list[str], list[str]]:
    """Return the sides and the signs of an equation or inequality, with the smallest side first."""
    sides, signs = split(text, _RELATION), _RELATION.findall(text)
    if len(sides) != len(signs) + 1:  # a sign is within brackets
        return [text], []
    if signs and set(signs) <= {r"\geq", ">"}:
        return sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    return sides, signs


def _interval(text: str) -> str | None:
    """Return the interval that an inequality for a single letter describes, or None."""
    sides, signs = _relation(text)
    if not signs or not set(signs) <= {"<", r"\leq"}:
        return None
    letters = [re.fullmatch("[a-zA-Z]", side) is not None for side in sides]
    if letters not in ([True, False], [False, True], [False, True, False]):
        return None
    lower = r"(-\infty" if letters[0] else f"{'(' if signs[0] == '<' else '['}{sides[0]}"
    return f"{lower}, " + (r"\infty)" if letters[-1] else f"{sides[-1]}{')' if signs[-1] == '<' else ']'}")
