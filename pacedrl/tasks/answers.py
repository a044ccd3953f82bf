"""Built-in judges of mathematical answers: does a completion state the gold answer?

``answer`` is a row's gold answer: a number, a plain string, LaTeX, or a GSM8K-style solution ending in ``#### 18``.
A completion that cannot be parsed is wrong (0.0); a gold answer that cannot be parsed raises JudgeError.
"""

from __future__ import annotations

import logging
import math
import re
from functools import lru_cache
from typing import Any

NUMERIC_TOLERANCE = 1e-6
"""Relative tolerance of the ``numeric`` verifier."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_VALUE = re.compile(
    r"(?:(?<![\w.)\]])(?P<sign>[-+−]))?"  # a sign, unless it subtracts: the 2 of "5-2" is positive
    rf"\$?(?P<number>(?=\.?\d){_NUMBER})"
    rf"(?: ?/ ?(?P<denominator>(?=\.?\d){_NUMBER}))?"
)
_THE_ANSWER_IS = re.compile(r"the answer is:?\s*(.+?)(?:\.\s|\.?$)", re.IGNORECASE | re.MULTILINE)


class JudgeError(Exception):
    """The verifier cannot judge this completion; the message says why in one line."""


def numeric_reward(answer: Any, text: str) -> float:
    """1.0 when the last number of ``text`` equals the last number of the gold answer, else 0.0.

    Thousands separators, fractions a/b, and the signs $ and % (dropped, not divided by) are understood.
    """
    gold = _last_number(_stated(answer))
    if gold is None:
        raise JudgeError(f"the gold answer {_shown(answer)} holds no number; the verifier 'numeric' needs one")
    value = _last_number(text)
    return float(value is not None and math.isclose(value, gold, rel_tol=NUMERIC_TOLERANCE))


def math_reward(answer: Any, text: str) -> float:
    """1.0 when the final answer of ``text`` equals the gold answer mathematically, else 0.0.

    The final answer is the last ``\\boxed{}``, else what follows the last ``####``, else what follows the last "The
    answer is", else what math-verify extracts.
    """
    gold_text = math_gold(answer)
    gold = _parse_gold(gold_text)
    if not gold:
        raise JudgeError(f"the gold answer {_shown(answer)} is not one the verifier 'math' can parse")
    boxed = last_boxed(text)
    if boxed is not None and boxed.strip() == gold_text:
        return 1.0
    try:
        candidates = _parse_completion(text, boxed)
    except MemoryError:  # says nothing about the completion
        raise
    except Exception:  # math-verify fails in many ways on malformed LaTeX, and malformed LaTeX is a wrong answer
        return 0.0
    return float(any(_equal(left, right) for left in gold for right in candidates))


def math_gold(answer: Any) -> str:
    """The gold answer itself, out of a GSM8K-style solution, a boxed one or dollar signs."""
    stated = _stated(answer)
    boxed = last_boxed(stated)
    stated = (stated if boxed is None else boxed).strip()
    if len(stated) > 2 and stated[0] == stated[-1] == "$":
        stated = stated.strip("$").strip()
    return stated


def last_boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces balance; None when there is none."""
    start = len(text)
    while (start := text.rfind(r"\boxed{", 0, start)) >= 0:
        content = start + len(r"\boxed{")
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", text[content:], re.DOTALL):  # an escaped brace does not count
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[content : content + brace.start()]
    return None


def load_math_verify() -> None:
    """Import math-verify and build its expressions, so that the first completion's time limit does not pay for it."""
    # It warns that its own time limits are off. They are: they need signals; the pool kills the process instead.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _parse("1")


def _stated(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise JudgeError(f"the gold answer {_shown(answer)} is neither text nor a number; map columns.answer to one")
    return str(answer).rpartition("####")[2].strip()


def _last_number(text: str) -> float | None:
    match = None
    for match in _VALUE.finditer(text):  # noqa: B007 - the last one is the point
        pass
    if match is None:
        return None
    value = float(match["number"].replace(",", ""))
    if match["denominator"]:
        denominator = float(match["denominator"].replace(",", ""))
        value = value / denominator if denominator else math.nan
    if not math.isfinite(value):
        return None
    return -value if match["sign"] in ("-", "−") else value


@lru_cache(maxsize=1024)
def _parse_gold(gold: str) -> list[Any]:
    """Once for the G completions of a prompt; empty when it cannot be parsed as a whole."""
    boxed = rf"\boxed{{{gold}}}"
    if last_boxed(boxed) != gold:  # its braces do not balance, and math-verify would settle for a part of it
        return []
    try:
        return _parse(boxed)
    except MemoryError:
        raise
    except Exception:  # as above: math-verify fails in many ways; the caller says that the gold cannot be parsed
        return []


def _parse_completion(text: str, boxed: str | None) -> list[Any]:
    if boxed is not None:
        return _parse(rf"\boxed{{{boxed}}}")
    fragments = []
    if "####" in text:
        fragments.append(text.rpartition("####")[2].strip().partition("\n")[0])
    fragments += _THE_ANSWER_IS.findall(text)[-1:]
    for fragment in fragments:
        if parsed := _parse_fragment(fragment, boxed_first="\\" in fragment):
            return parsed
    return _parse(text)


def _parse_fragment(fragment: str, boxed_first: bool) -> list[Any]:
    """Boxed, math-verify reads the whole as LaTeX; bare, it looks for an expression among words (``18 dollars``)."""
    boxed = rf"\boxed{{{fragment}}}"
    first, second = (boxed, fragment) if boxed_first else (fragment, boxed)
    return _parse(first) or _parse(second)


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    expressions: list[Any] = parse(text, parsing_timeout=None, raise_on_error=True)
    return expressions


def _equal(gold: Any, candidate: Any) -> bool:
    from math_verify import verify

    try:
        return bool(verify(gold, candidate, timeout_seconds=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:  # sympy fails in many ways on what it cannot compare; what does not compare is not equal
        return False


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else text[:77] + "..."
