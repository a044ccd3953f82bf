"""Decides whether what a program prints, or a function returns, is what was expected. No code of a completion runs.

Whole numbers are compared exactly, however long they are; only numbers with a fraction have a tolerance. A number that
is printed with a point or an exponent passes for a whole number if it is within ``TOLERANCE`` of it, computed exactly:
"3.0" passes for "3", but "1e18" does not for "1000000000000000001". For results of functions, 3.0 equals 3 and True
equals 1, as in Python.
"""

import collections
import datetime
import decimal
import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

TOLERANCE = 1e-6
"""For floating-point numbers: absolute for those that a function returns, also relative for those that are printed."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"[-+]?[0-9]+")
_EXACT_IN_FLOAT = 2**53
_WRITTEN_AS_TEXT = (Fraction, Decimal, datetime.date, datetime.time, datetime.timedelta)


def prints_the_same(printed: str, expected: str) -> bool:
    """Tell whether outputs agree, ignoring space at the ends of lines and of the output, and last digits of floats."""
    lines, expected_lines = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    return len(lines) == len(expected_lines) and all(map(_lines_agree, lines, expected_lines))


def _lines_agree(line: str, expected_line: str) -> bool:
    if line == expected_line:
        return True
    tokens, expected = line.split(), expected_line.split()
    return len(tokens) == len(expected) and all(map(_token_agrees, tokens, expected))


def _token_agrees(token: str, expected: str) -> bool:
    if token == expected:
        return True
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(expected)):
        return False
    written_whole = [_WHOLE.fullmatch(text) is not None for text in (token, expected)]
    if all(written_whole):  # only equal text is equal: 03 may be a part of a date
        return False
    digits = len(expected) + 20  # so that nothing is rounded below, unless there is a large exponent
    with decimal.localcontext(decimal.Context(digits, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])):
        number, right = Decimal(token), Decimal(expected)
        tolerance = Decimal(TOLERANCE)
        if not any(written_whole) and not (_is_whole(number) and _is_whole(right)):
            tolerance *= max(Decimal(1), abs(right))
        return right - tolerance <= number <= right + tolerance


def _is_whole(number: Decimal) -> bool:
    """Tell whether the text is a whole number, small enough that floats of its size still have a fraction."""
    return abs(number) < _EXACT_IN_FLOAT and number == number.to_integral_value()


def returns_the_same(value: Any, expected: Any) -> bool:
    """Tell whether a result agrees with one that was written as JSON, which has neither tuples nor dates.

    Expected text may also be Python's ``repr`` of a result that JSON does not have, such as "[Fraction(1, 2)]".
    """
    if isinstance(expected, str) and not isinstance(value, str | int | float | None) and repr(value) == expected:
        return True
    expected = _as_json(expected, None)  # it may come from a column that is not JSON
    return same(_as_json(value, expected), expected)


def _as_json(value: Any, expected: Any) -> Any:
    """Return ``value`` as it would be written in place of ``expected``: sequences as lists, keys as strings.

    If a string is expected, times and numbers that JSON does not have may be written in any usual way.
    """
    if isinstance(value, list | tuple | collections.deque):
        parts = expected if isinstance(expected, list) and len(expected) == len(value) else [None] * len(value)
        return [_as_json(*pair) for pair in zip(value, parts, strict=True)]
    if isinstance(value, dict):
        items = expected if isinstance(expected, dict) else {}
        keys = [json.dumps(key) if isinstance(key, bool | int | float | None) else str(key) for key in value]
        written = {key: _as_json(item, items.get(key)) for key, item in zip(keys, value.values(), strict=True)}
        return written if len(written) == len(value) else None  # two keys are written alike
    if isinstance(expected, str) and isinstance(value, _WRITTEN_AS_TEXT):
        usual = {str(value), repr(value), value.isoformat() if hasattr(value, "isoformat") else None}
        return expected if expected in usual else value
    return value


def same(value: Any, expected: Any, atol: float = TOLERANCE) -> bool:
    """Tell whether both are equal. Floats inside may differ by ``atol`` and 1e-7 of their size; NaN equals NaN."""
    if value == expected:
        return True
    if isinstance(expected, float) and isinstance(value, int | float | Fraction | Decimal):
        return _are_close(value, expected, atol) or (value != value and expected != expected)
    if isinstance(expected, complex) and isinstance(value, int | float | complex):
        return abs(value - expected) <= atol + 1e-7 * abs(expected) < math.inf
    if isinstance(expected, list | tuple):
        return (
            isinstance(value, list if isinstance(expected, list) else tuple)
            and len(value) == len(expected)
            and all(same(*pair, atol) for pair in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key], atol) for key in expected)
    return False


def _are_close(value: int | float | Fraction | Decimal, expected: float, atol: float) -> bool:
    wide = atol + 1e-7 * abs(expected)
    if not math.isfinite(expected) or not expected - wide <= value <= expected + wide:
        return False
    both_whole = abs(expected) < _EXACT_IN_FLOAT and expected.is_integer() and value == int(value)
    return not (both_whole or isinstance(value, int)) or expected - atol <= value <= expected + atol
