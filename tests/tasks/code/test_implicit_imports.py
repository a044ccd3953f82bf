"""Tests of names that a program need not import, and of how a program ends."""

import builtins

import pytest
from code_helpers import SETTINGS, reward

from pacedrl.tasks.code.implicit_imports import MEMBERS, SOURCES

NINE = {"inputs": ["3\n"], "outputs": ["9\n"]}


@pytest.mark.parametrize(
    ("end", "verdict"),
    [
        ("exit()", 1.0),
        ("quit()", 1.0),
        ("exit(0)", 1.0),
        ("quit(None)\nprint(1)", 1.0),
        ("import sys\nsys.exit()", 1.0),
        ("from sys import exit\nexit()", 1.0),
        ("raise SystemExit", 1.0),
        ("def main():\n    exit()\nmain()\nprint(1)", 1.0),
        ("exit(1)", 0.0),
        ("quit('it went wrong')", 0.0),
        ("import sys\nsys.exit(2)", 0.0),
        ("1 / 0", 0.0),
        ("import os\nos._exit(0)", 0.0),  # what was printed was not written yet
    ],
)
def test_a_program_ends_as_a_script_does(end, verdict):
    assert reward(f"print(int(input()) ** 2)\n{end}\n", NINE) == verdict


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print(9))).start()",
            marks=pytest.mark.skipif(SETTINGS.sandbox == "rlimits", reason="all of the user's processes count there"),
        ),
        "import atexit, sys\natexit.register(lambda: sys.stdout.write('9'))\nexit()",
        "import io, sys\nsys.stdout = io.StringIO()\nprint(9)\nsys.__stdout__.write(sys.stdout.getvalue())",
        "import sys\nsys.stdout.buffer.write(b'9')",
    ],
)
def test_what_is_printed_last_counts(text):
    assert reward(text, NINE) == 1.0


def test_functions_defined_before_the_end_count():
    row = {"test_list": ["assert double(2) == 4"]}
    assert reward("def double(x):\n    return 2 * x\nprint(double(1))\nexit()\n", **row) == 1.0
    assert reward("exit()\ndef double(x):\n    return 2 * x\n", **row) == 0.0
    assert reward("def double(x):\n    return 2 * x\nexit(1)\n", **row) == 0.0
    assert reward("def double(x):\n    exit()\n", **row) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "n: List[int] = [int(stdin.readline())]\nprint(n[0] ** 2)",
        "print(next(iter(deque(sys.stdin))).strip() and math.floor(9.5))",
        "def f(x: Optional[int], y: Dict[str, Tuple[int, ...]] = {}) -> Any: return reduce(mul, [x, x])\nprint(f(3))",
        "print(Counter('a' * 9)['a'], end='')",
        "heap = [9, 10]\nheapify(heap)\nprint(heappop(heap), file=stdout)",
        "@lru_cache(None)\ndef f(n): return 9 if n == 0 else f(n - 1)\nprint(f(5))",
        "print(bisect.bisect_left(range(20), 9), sep='' if inf > 1 else 0)",
        "print(len(list(permutations('abc'))) + gcd(9, 6) if datetime.date(2024, 1, 1) and string.digits else 0)",
        "print(pow(int(input()), 2, 100))",
    ],
)
def test_usual_names_need_no_import_in_a_program(text):
    assert reward(text, NINE) == 1.0


def test_usual_names_need_no_import_in_a_function():
    row = {"fn_name": "total", "inputs": [[[1, 2, 3]]], "outputs": [6]}
    method = "    def total(self, nums: List[int]) -> Optional[int]:\n        return reduce(add, deque(nums))\n"
    assert reward("class Solution:\n" + method, row) == 1.0
    assert reward("def total(nums: Sequence[int]) -> int:\n    return list(accumulate(nums))[-1]", row) == 1.0
    head = "def total(nums: List[int]) -> int:\n"
    check = "def check(candidate):\n    assert candidate(list(Counter('abcabc').values())) == 6\n"
    code = {"content": head, "test": check, "entry_point": "total"}
    assert reward("    return reduce(add, nums)", **code) == 1.0
    assert reward("    return 5", **code) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "def gcd(a, b): return 9\nprint(gcd(4, 6))",
        "count = 8\ncount += 1\nprint(count)",
        "from statistics import mode as gcd\nprint(gcd([9, 9]))",
        "from math import *\nprint(int(pow(3, 2)))",
        "class deque(list): pass\nprint(deque([9])[0])",
        "for e in [9]: print(e)",
        "def f(log): return log\nprint(f(9))",
        "print(9 if 'gcd' not in globals() else gcd(1, 1))",
        "try: prod2\nexcept NameError: print(9)",
        "import time as datetime\nprint(9 if hasattr(datetime, 'monotonic') else 0)",
    ],
)
def test_what_a_program_defines_or_imports_itself_wins(text):
    assert reward(text, NINE) == 1.0


def test_no_built_in_name_is_replaced():
    assert not SOURCES.keys() & set(dir(builtins))
    assert (
        reward("print(pow(3, 2, 5), abs(-1), compile('1', '', 'eval') and 2)", {"inputs": [""], "outputs": ["4 1 2"]})
        == 1.0
    )


@pytest.mark.parametrize("module", MEMBERS)
def test_every_name_can_be_had(module):
    names = [*MEMBERS[module].split(), module]
    text = "names = [" + ", ".join(names) + "]\nprint(len(names))"
    assert reward(text, {"inputs": [""], "outputs": [str(len(names))]}) == 1.0


def test_a_usual_name_is_no_answer_to_a_question_of_that_name():
    tests = ["assert gcd(4, 6) == 2"]
    assert reward("gcd", test_list=tests) == 0.0
    assert reward("from math import gcd", test_list=tests) == 1.0
    assert reward("class Solution:\n    def gcd(self, a, b):\n        return gcd(a, b)", test_list=tests) == 1.0
    assert reward("reduce(gcd, [1])", {"fn_name": "gcd", "inputs": [[4, 6]], "outputs": [2]}) == 0.0


def test_names_that_are_not_on_the_list_are_errors_of_the_program():
    for name in ("np", "os", "time", "Fraction", "defaultdictionary"):
        assert reward(f"print({name} and 9)", NINE) == 0.0
