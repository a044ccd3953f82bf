"""Whole numbers are compared exactly, printed and returned; numbers with a fraction have a tolerance."""

import pytest
from code_helpers import reward

from pacedrl.tasks.code.compare import prints_the_same, same

LONG = 10**18 + 1
DIGITS = "1" + "0" * 4998 + "7"


@pytest.mark.parametrize(
    ("printed", "expected", "verdict"),
    [
        ("1e18", str(LONG), False),
        ("1000000000000000001.0", str(LONG), True),
        ("1000000000000000000.0", str(LONG), False),
        (str(LONG - 1), str(LONG), False),
        ("1e18", str(10**18), True),
        (str(10**18), "1e18", True),
        (str(LONG), "1e18", False),
        ("12345679", "12345678.0", False),
        ("12345679.0", "12345678.0", False),
        ("12345678.0", "12345678", True),
        ("12345678.5", "12345678.50001", True),
        ("1.0000000000000002e+22", "1e+22", True),
        ("2.9999999999999996", "3", True),
        ("3.001", "3", False),
        ("3", "2.9999999999999996", True),
        ("3", "2.99", False),
        ("-0.0", "0", True),
        ("+3", "3", False),
        ("0x10", "16", False),
        ("1" * 5000 + ".0", "1" * 5000, True),
        ("1" * 4999 + "2.0", "1" * 5000, False),
        ("1e99999999999999999999", "1", False),
        ("1e-400", "0", True),
        ("9" * 30, "1e30", False),
        ("[1000000000000000000]", "[1000000000000000001]", False),
        ("٣", "3.0", False),
    ],
)
def test_printed_numbers(printed, expected, verdict):
    assert prints_the_same(printed, expected) is verdict
    assert prints_the_same(f"x {printed} y", f"x {expected} y") is verdict


@pytest.mark.parametrize(
    ("value", "expected", "verdict"),
    [
        ("1e18", LONG, False), ("10**18", LONG, False), ("10**18 + 1", LONG, True), ("float(10**18)", 10**18, True),
        ("10**18 + 1", 1e18, False), ("10**18", 1e18, True), ("12345679", 12345678.0, False), ("3", 3.0, True),
        ("12345679.0", 12345678.0, False), ("3.0", 3, True), ("3.0000001", 3, False), ("0.1 + 0.2", 0.3, True),
        ("0.1", 0.3, False), ("True", 1, True), ("1", True, True), ("2", True, False), ("'1'", 1, False),
        ("[10**18, [0.1 + 0.2]]", [10**18, [0.3]], True), ("[10**18, [0.3]]", [LONG, [0.3]], False),
        ("{'a': (1e18, 0.5)}", {"a": [LONG, 0.5]}, False), ("{'a': (LONG, 0.5)}", {"a": [LONG, 0.5000000001]}, True),
        ("10**5000", 10**5000, True), ("10**5000 + 1", 10**5000, False), ("10**5000", 1e300, False),
        ("1e300", 10**5000, False), ("float('nan')", 0.0, False), ("float('inf')", 10**400, False),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_returned_numbers(value, expected, verdict):
    row = {"fn_name": "f", "inputs": [[]], "outputs": [expected]}
    assert reward(f"LONG = {LONG}\ndef f(): return {value}", row) == float(verdict)


def test_integers_of_any_length_are_printed_read_and_judged():
    row = {"inputs": [DIGITS], "outputs": [DIGITS]}
    assert reward("print(int(input()))", row) == 1.0
    assert reward("print(int(input()) + 1)", row) == 0.0
    assert reward("print(int(input()))", f'{{"inputs": [{DIGITS}], "outputs": [[{DIGITS}]]}}') == 1.0
    as_text = f'{{"fn_name": "f", "inputs": [["{DIGITS}"]], "outputs": [{DIGITS}]}}'
    assert reward("def f(text): return int(text)", as_text) == 1.0
    assert reward("def f(text): return int(text) + 1", as_text) == 0.0
    assert reward("def f(n): return n", {"fn_name": "f", "inputs": [DIGITS], "outputs": [DIGITS]}) == 1.0
    assert reward("def f(n): return n % 10", test_list=[f"assert f({DIGITS}) == 7"]) == 1.0


def test_integers_are_exact_within_what_floats_are_compared_with():
    assert not same([LONG, 0.5], [LONG - 1, 0.5])
    assert same([LONG, 0.5 + 1e-9], [LONG, 0.5])
    assert same(1e22 + 2e6, 1e22)  # beyond 2**53 floats have no fraction, and a last digit that is off
