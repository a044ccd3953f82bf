"""Expressions that math-verify reads, and whether their values are equal.

Two expressions are equal when their values agree to 20 digits, at several points where they have variables. That takes
bounded time, where simplifying takes any amount of it, and it is relative: math-verify's own comparison rounds to six
decimals and so holds 2^-99 and 2^-98 equal.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

_ALIKE = Fraction(1, 10**20)
_READS_BEFORE_FORGETTING = 500
_reads = itertools.count(1)
_RANGES = ((0.5, 3.0), (0.5, 3.0), (-3.0, -0.5))  # of what variables stand for


def load_math_verify() -> None:
    """Import math-verify and build its expressions, so that the first completion's time limit does not pay for it."""
    # It warns that its own time limits are off. They are: they measure wall-clock time, and would differ between runs.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    _read(r"\frac{1}{2}x")


def clear_caches() -> None:
    """Forget expressions and what the grammar learnt from them.

    Sympy keeps what it was working on when it was interrupted; the grammar's tables grow with every new kind of text,
    4 MB in a thousand hostile ones.
    """
    from sympy.core.cache import clear_cache  # type: ignore[import-untyped]

    _read.cache_clear()
    clear_cache()
    with contextlib.suppress(ImportError, AttributeError):  # of another version, whose tables then grow
        from antlr4.dfa.DFA import DFA  # type: ignore[import-untyped]
        from latex2sympy2_extended.antlr_parser import PSParser  # type: ignore[import-untyped]

        PSParser.sharedContextCache.cache.clear()
        PSParser.decisionsToDFA[:] = [DFA(state, n) for n, state in enumerate(PSParser.atn.decisionToState)]


def near(gold: Fraction, answer: Fraction, tolerance: Fraction) -> bool:
    return abs(gold - answer) <= tolerance * abs(gold)


def same_expressions(gold: str, answer: str, scale: Fraction, tolerance: Fraction) -> bool:
    """Whether ``gold`` equals ``scale`` times ``answer``; the relative tolerance counts where one holds a decimal."""
    left, right = _read(gold), _read(answer)
    if left is None or right is None or letters_differ_in_case(gold, answer):
        return False
    decimal = re.search(r"\.\d", gold + " " + answer)
    points = _points((left, right), f"{gold} {answer}")
    return _same_everywhere(left, right, points, scale, max(tolerance, _ALIKE) if decimal else _ALIKE)


def letters_differ_in_case(gold: str, answer: str) -> bool:
    """R and r are two radii to a geometer and one symbol to math-verify."""
    letters = [set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text))) for text in (gold, answer)]
    return any(a.swapcase() in letters[1] and a not in letters[1] for a in letters[0])


@lru_cache(maxsize=256)
def _read(text: str) -> Any:
    """What math-verify makes of a tractable text; None when it cannot read it as one expression."""
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]
    from math_verify import LatexExtractionConfig, parse
    from sympy import Expr  # type: ignore[import-untyped]

    if next(_reads) % _READS_BEFORE_FORGETTING == 0:
        clear_caches()
    as_written = NormalizationConfig(units=False, malformed_operators=True, boxed="last")
    config = LatexExtractionConfig(boxed_match_priority=0, normalization_config=as_written)
    try:
        (expression,) = parse(
            rf"\boxed{{{text}}}",
            [config],  # LaTeX only: the reader of plain expressions calls eval, and picks a number out of anything
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=True,
        )
    except MemoryError:  # says nothing about the text
        raise
    except Exception:  # it fails in many ways on malformed LaTeX, and malformed LaTeX is no expression
        return None
    return expression if isinstance(expression, Expr) else None


def _same_everywhere(left: Any, right: Any, points: list[dict[Any, Any]], scale: Fraction, tolerance: Fraction) -> bool:
    exact = (_rational(left), _rational(right)) if points == [{}] else (None, None)
    if exact[0] is not None and exact[1] is not None:
        return near(exact[0], exact[1] * scale, tolerance if tolerance > _ALIKE else Fraction(0))
    compared = 0
    for point in points:
        values = _value(left, point), _value(right, point)
        if values == (None, None) or (point and min(point.values()) < 0 and not all(map(_real, values))):
            continue  # roots and logarithms have branches there, on which equal forms may differ
        if values[0] is None or values[1] is None or not _close(values[0], values[1] * _float(scale), tolerance):
            return False
        compared += 1
    return compared >= len(points) - 1 and compared > 0


def proportional(gold: str, answer: str, positive: bool) -> bool:
    """Whether one side's difference is a constant multiple of the other's, so that both relations say the same."""
    left, right = _read(gold), _read(answer)
    if left is None or right is None or letters_differ_in_case(gold, answer):
        return False
    ratios = []
    for point in _points((left, right), f"{gold} {answer}"):
        values = _value(left, point), _value(right, point)
        if values[0] is None or values[1] is None or values[0] == 0 or values[1] == 0:
            return False
        ratios.append(values[1] / values[0])
    same = all(_close(ratios[0], ratio, _ALIKE) for ratio in ratios[1:])
    return same and len(ratios) > 1 and (not positive or (_real(ratios[0]) and bool(ratios[0] > 0)))


def _points(expressions: tuple[Any, Any], seed: str) -> list[dict[Any, Any]]:
    """Values to try for the variables: the same in every run, but a completion cannot be written to fit them."""
    from sympy import Float

    symbols = sorted(expressions[0].free_symbols | expressions[1].free_symbols, key=str)
    rng = random.Random(seed)
    return [{symbol: Float(rng.uniform(*ends), 40) for symbol in symbols} for ends in _RANGES] if symbols else [{}]


def _guarded(evaluate: Callable[[], Any]) -> Any:
    try:
        return evaluate()
    except MemoryError:
        raise
    except Exception:  # sympy fails in many ways on what has no value
        return None


def _rational(expression: Any) -> Fraction | None:
    value = _guarded(expression.doit)
    return Fraction(int(value.p), int(value.q)) if value is not None and value.is_Rational else None


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """A finite complex number of 30 digits; None when there is none."""
    value = _guarded(lambda: expression.evalf(30, subs=point))
    parts = _guarded(lambda: value.as_real_imag())
    return value if parts is not None and all(part.is_Number and part.is_finite for part in parts) else None


def _real(value: Any) -> bool:
    return value is not None and bool(value.is_Number)


def _close(gold: Any, answer: Any, tolerance: Fraction) -> bool:
    return _guarded(lambda: bool(abs(gold - answer) <= _float(tolerance) * abs(gold))) is True


def _float(value: Fraction) -> Any:
    from sympy import Float, Integer

    return Float(Integer(value.numerator), 40) / Float(Integer(value.denominator), 40)
