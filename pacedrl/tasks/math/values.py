"""Compares the values of two expressions: math-verify's grammar reads them, and they are evaluated at points.

Unlike simplification, evaluation takes bounded time: rational numbers are exact up to a limit on their size, all
others have _DIGITS digits, and an expression that exceeds a limit has no value.
"""

import contextlib
import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath  # type: ignore[import-untyped]

from pacedrl.tasks.math.notation import levels

_DIGITS = 400
_ALIKE = Fraction(1, 10**60)  # relative tolerance for values that are not rational
_MOST_BITS = 200_000  # of a rational number: 9999! has 118,000
_LARGEST = 10**6  # of an exponent, and of a function's argument
_RANGES = ((1, 3), (-3, -1), (3, 12), (20, 60), (-60, 60), (100, 400), (-400, -100))  # of the variables
_FAR = ((10**3, 10**4), (10**4, 10**5), (10**5, 10**6), (-(10**6), -(10**4)), (-1, 1))
_READS_BEFORE_FORGETTING = 500
_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|times|div|ln|log|exp|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|binom|circ|max|min"
    r"|[lr](?:ceil|floor|vert)|theta|alpha|beta|gamma|delta|lambda|mu|sigma|(?:var)?(?:phi|epsilon)|omega|rho|tau|psi)"
)
_NO_EXPRESSION = re.compile(
    r"(?<![a-zA-Z\\])[a-zA-Z]{4}|\d\s+\d|\d\)?\s*_|[^\w\s\\^{}()\[\]|.+*/!,-]"  # words, two numbers, bases
    r"|\d{31}|\dE[-+]?\d|\.\.|\\binom(?!(?:\{(?:\d{1,4}|\d{0,3}[A-DF-HJ-Za-df-hj-z][a-df-hj-z\d+-]{0,5})\}){2})"
    r"|\\sqrt\[(?!(?:\d{1,3}|\w)\])",  # the last two lines match costly expressions
    re.ASCII,
)
_reads = itertools.count(1)
_mp = mpmath.MPContext()
_mp.dps = _DIGITS


class _NoValueError(Exception):
    """The expression is too large, or of a kind that is not evaluated."""


def load_math_verify() -> None:
    """Import the grammar and read one expression, so that this time does not count for the first completion."""
    _read(r"\frac{1}{2}x")


def same_values(gold: str, answer: str, slack: Fraction) -> bool:
    """Whether both expressions have the same values at all points, up to the relative tolerance ``slack``."""
    pairs = _values(gold, answer)
    return bool(pairs) and all(_close(left, right, slack) for left, right in pairs)


def proportional(gold: str, answer: str, positive: bool) -> bool:
    """Whether one expression is the other times a constant, which is above 0 if ``positive``."""
    pairs = _values(gold, answer)
    if len(pairs) < 2 or any(0 in pair for pair in pairs):
        return False
    ratio, *ratios = [_inexact(left) / _inexact(right) for left, right in pairs]
    return all(_close(ratio, other, _ALIKE) for other in ratios) and (not positive or (_real(ratio) and ratio > 0))


def _values(gold: str, answer: str) -> list[tuple[Any, Any]]:
    """Evaluate both at the same points; return [] if one cannot be read or has no value at a point.

    Negative points at which one value is not real are left out: equal roots and logarithms may differ there by a
    branch.
    """
    left, right = _read(gold), _read(answer)
    if left is None or right is None:
        return []
    pairs = []
    for ends in _ranges(gold + answer):
        point = _point(f"{gold} {answer} {ends}", ends)
        try:
            pair = _value(left, point), _value(right, point)
        except (_NoValueError, ArithmeticError, ValueError, TypeError):  # ValueError: poles; TypeError: complex numbers
            return []
        if not point:  # a constant
            return [pair]
        if ends[0] > 0 or all(map(_real, pair)):
            pairs.append(pair)
    return pairs


def _ranges(texts: str) -> tuple[tuple[int, int], ...]:
    """Return ranges for the variables; more for piecewise functions, which may differ only near a corner or far off."""
    if not re.search(r"\||floor|ceil|max|min", texts):
        return _RANGES
    corners = [sign * int(number) for number in sorted(set(re.findall(r"\d{1,5}", texts)))[:10] for sign in (1, -1)]
    return (*_RANGES, *_FAR, *((corner - 1, corner + 1) for corner in corners))


def _point(seed: str, ends: tuple[int, int]) -> defaultdict[str, Fraction]:
    """Draw values of the variables, seeded by the texts: equal in every run, but no completion can aim at them."""
    rng = random.Random(seed)
    return defaultdict(lambda: Fraction(rng.randrange(1000 * ends[0], 1000 * ends[1]), 1009))


@lru_cache(maxsize=256)
def _read(text: str) -> Any:
    """Read the text as an unevaluated expression; None if it is not one, or may take long to read."""
    from latex2sympy2_extended import latex2sympy  # type: ignore[import-untyped]
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
    from sympy import Expr  # type: ignore[import-untyped]

    depths = levels(text)
    if depths[-1] or max(depths) > 8 or max(len(text) - 300, text.count("|") - 8, text.count("/") - 20) > 0:
        return None  # the grammar's time is exponential in some of these
    if _NO_EXPRESSION.search(text) or not all(map(_COMMANDS.fullmatch, re.findall(r"\\(?:[a-zA-Z]+|.)", text))):
        return None
    if next(_reads) % _READS_BEFORE_FORGETTING == 0:
        _forget()
    case_matters = ConversionConfig(lowercase_symbols=False)
    try:
        expression = latex2sympy(text, normalization_config=None, conversion_config=case_matters, convert_degrees=True)
    except MemoryError:  # this says nothing about the text
        raise
    except Exception:  # the grammar fails on malformed LaTeX in many ways; such text is not an expression
        return None
    return expression if isinstance(expression, Expr) else None


def _forget() -> None:
    """Clear the tables of the grammar, which grow with each new kind of text: by 4 MB in 1,000 hostile texts."""
    _read.cache_clear()
    with contextlib.suppress(ImportError, AttributeError):  # in other versions of the library the tables grow
        from antlr4.dfa.DFA import DFA  # type: ignore[import-untyped]
        from latex2sympy2_extended.antlr_parser import PSParser  # type: ignore[import-untyped]

        PSParser.sharedContextCache.cache.clear()
        PSParser.decisionsToDFA[:] = [DFA(state, n) for n, state in enumerate(PSParser.atn.decisionToState)]


def _value(node: Any, point: defaultdict[str, Fraction]) -> Any:
    """Evaluate to a Fraction if that is exact, else to a number of mpmath.

    Raises _NoValueError, and the exceptions of mpmath.
    """
    kind = type(node).__name__
    if node.is_Rational:
        return Fraction(int(node.p), int(node.q))
    if node.is_Float:
        return Fraction(str(node))  # exactly the decimal in the text
    if kind == "ImaginaryUnit" or (node.is_Symbol and node.name == "i"):
        return _mp.mpc(0, 1)
    if node.is_Symbol:
        return point[node.name]
    if kind in ("Pi", "Exp1"):
        return +_mp.pi if kind == "Pi" else +_mp.e
    arguments = [_value(argument, point) for argument in node.args]
    if len(kind) == 1:  # the grammar reads a(b) as a function
        arguments, kind = [point[kind], *arguments], "Mul"
    if not all(isinstance(argument, Fraction) for argument in arguments):
        arguments = list(map(_inexact, arguments))
    if kind in _EXACT:
        value = _EXACT[kind](*arguments)
        if isinstance(value, Fraction) and max(value.numerator, value.denominator, key=abs).bit_length() > _MOST_BITS:
            raise _NoValueError
        return value
    if not _FUNCTIONS.fullmatch(kind) or any(abs(argument) > _LARGEST for argument in arguments):
        raise _NoValueError
    return getattr(_mp, kind)(*map(_inexact, arguments))


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _LARGEST:
        raise _NoValueError
    if isinstance(base, Fraction) and exponent.denominator == 1:
        if max(base.numerator, base.denominator, key=abs).bit_length() * abs(exponent) > _MOST_BITS:
            raise _NoValueError
        return base ** int(exponent)
    if isinstance(base, Fraction) and base < 0 and exponent.denominator % 2 and abs(exponent.numerator) == 1:
        return -_mp.power(_inexact(-base), _inexact(exponent))  # the real root, such as the cube root of -8
    return _mp.power(_inexact(base), _inexact(exponent))


def _factorial(n: Any) -> Any:
    if abs(n) >= 10_000:
        raise _NoValueError
    whole = isinstance(n, Fraction) and n.denominator == 1
    return Fraction(math.factorial(int(n))) if whole else _mp.factorial(_inexact(n))


def _floor(value: Any) -> Fraction:
    return Fraction(math.floor(value) if isinstance(value, Fraction) else int(_mp.floor(value)))


_EXACT: dict[str, Callable[..., Any]] = {
    "Add": lambda *terms: sum(terms),
    "Mul": lambda *factors: math.prod(factors),
    "Pow": _power,
    "factorial": _factorial,
    "Abs": abs,
    "floor": _floor,
    "ceiling": lambda value: -_floor(-value),
    "Max": max,
    "Min": min,
}
_FUNCTIONS = re.compile("log|exp|a?(?:sin|cos|tan)h?|cot|sec|csc|binomial")


def _inexact(value: Any) -> Any:
    return _mp.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _real(value: Any) -> bool:
    return isinstance(value, Fraction | _mp.mpf)


def _close(gold: Any, answer: Any, slack: Fraction) -> bool:
    if isinstance(gold, Fraction) and isinstance(answer, Fraction):
        return abs(gold - answer) <= slack * abs(gold)
    gold, answer = _inexact(gold), _inexact(answer)
    return bool(abs(gold - answer) <= _inexact(max(slack, _ALIKE)) * abs(gold))
