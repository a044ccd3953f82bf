"""When what a program prints, or what a function returns, is what was expected.

This file is shown to the sandbox of the tests (see ``code_driver``), so it imports the standard library only. Both
sides of a comparison are built-in types: no code of a completion runs here.
"""

from __future__ import annotations

import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Absolute, for floating-point numbers that a function returns; relative too, for those that a program prints."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d+")


def prints_the_same(printed: str, expected: str) -> bool:
    """Whether two outputs agree, but for space at the end of lines and of the whole, and the last digits of floats."""
    lines, expected_lines = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    if lines == expected_lines:
        return True
    return len(lines) == len(expected_lines) and all(map(_tokens_agree, lines, expected_lines))


def _tokens_agree(line: str, expected_line: str) -> bool:
    tokens, expected = line.split(), expected_line.split()
    return len(tokens) == len(expected) and all(map(_token_agrees, tokens, expected))


def _token_agrees(token: str, expected: str) -> bool:
    if token == expected:
        return True
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(expected)):
        return False
    if _WHOLE.fullmatch(expected):  # a large whole number has no digits to spare
        return not _WHOLE.fullmatch(token) and abs(float(token) - float(expected)) <= TOLERANCE
    return math.isclose(float(token), float(expected), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def same(value: Any, expected: Any, atol: float = TOLERANCE) -> bool:
    """Equality, but floats may differ by ``atol`` and 1e-7 of their size, wherever they stand, and NaN equals NaN."""
    if value == expected:
        return True
    if isinstance(expected, float | complex) and isinstance(value, int | float | complex):
        both_nan = value != value and expected != expected
        return both_nan or abs(value - expected) <= atol + 1e-7 * abs(expected) < math.inf
    if type(value) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(same(*pair, atol) for pair in zip(value, expected, strict=True))
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key], atol) for key in expected)
    return False
