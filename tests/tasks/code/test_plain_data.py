"""Tests of results other than numbers, strings and lists: they are judged, or an error names their type."""

import datetime
import decimal

import pytest
from code_helpers import SETTINGS, prompt, reward

from pacedrl.errors import JudgeError
from pacedrl.tasks.pool import Job, VerifierPool

IMPORTS = [
    "import array, collections, datetime, itertools, pathlib, re",
    "from collections import Counter, OrderedDict, defaultdict, deque, namedtuple",
    "from dataclasses import dataclass",
    "from decimal import Decimal",
    "from fractions import Fraction",
]
ENDLESS = "def f():\n    n = 0\n    while True:\n        yield n\n        n += 1\n"


def returning(expression):
    return "\n".join([*IMPORTS, f"def f(x=None):\n    return {expression}\n"])


def asserted(expression, expected):
    """Return the reward for returning ``expression`` where a test asserts that ``expected`` is returned."""
    return reward(returning(expression), test_imports=IMPORTS, test_list=[f"assert f() == {expected}"])


def paired(expression, expected):
    """Return the same if the expected result is a pair's output."""
    return reward(returning(expression), {"fn_name": "f", "inputs": [[]], "outputs": [expected]})


TYPES = [
    ("Fraction(1, 2)", "Fraction(2, 4)", "Fraction(1, 3)"),
    ("Decimal('0.10')", "Decimal('0.1')", "Decimal('0.11')"),
    ("Decimal(1) / 3", "Decimal(1) / 3", "1 / 3"),
    ("datetime.date(2024, 2, 1)", "datetime.date(2024, 2, 1)", "datetime.date(2024, 1, 2)"),
    (
        "datetime.datetime(2024, 2, 1, 3, 4, 5, 6)",
        "datetime.datetime(2024, 2, 1, 3, 4, 5, 6)",
        "datetime.date(2024, 2, 1)",
    ),
    (
        "datetime.datetime(2024, 2, 1, 3, tzinfo=datetime.timezone.utc)",
        "datetime.datetime(2024, 2, 1, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))",
        "datetime.datetime(2024, 2, 1, 3)",
    ),
    ("datetime.time(3, 4)", "datetime.time(3, 4)", "datetime.time(4, 3)"),
    ("datetime.timedelta(1, 2, 3)", "datetime.timedelta(1, 2, 3)", "datetime.timedelta(1)"),
    ("complex(1, 2)", "1 + 2j", "1 - 2j"),
    ("bytearray(b'ab')", "b'ab'", "'ab'"),
    ("Counter('aab')", "Counter('aba')", "Counter('ab')"),
    ("OrderedDict([(1, 2), (3, 4)])", "OrderedDict([(1, 2), (3, 4)])", "OrderedDict([(3, 4), (1, 2)])"),
    ("defaultdict(list, {1: [2]})", "{1: [2]}", "{1: []}"),
    ("namedtuple('P', 'x y')(1, 2)", "(1, 2)", "(2, 1)"),
    ("int", "int", "float"),
    ("[ValueError, str]", "[ValueError, str]", "[TypeError, str]"),
    ("{Fraction(1, 2): [Decimal(1)]}", "{Fraction(1, 2): [Decimal(1)]}", "{Fraction(1, 2): [Decimal(2)]}"),
]


@pytest.mark.parametrize(("right", "expected", "wrong"), TYPES, ids=lambda text: text[:30])
def test_types_of_the_library(right, expected, wrong):
    assert asserted(right, expected) == 1.0
    assert asserted(wrong, expected) == 0.0
    assert asserted("None", expected) == 0.0


def test_what_such_types_can_do():
    test = (
        "p = f('p')\nassert p.x == 1 and p[1] == 2\nassert f('c').most_common(1) == [('a', 2)]\nassert f('c')['z'] == 0"
    )
    text = returning("namedtuple('P', 'x y')(1, 2) if x == 'p' else Counter('aba')")
    assert reward(text, test=test) == 1.0
    assert reward(text.replace("'aba'", "'abb'"), test=test) == 0.0


ITERABLES = [
    "(n for n in range(3))", "range(3)", "map(int, '012')", "filter(str, [0, 1, 2])", "iter([0, 1, 2])",
    "enumerate('abc')", "zip('ab', 'cd')", "reversed([2, 1, 0])", "{0: 'a', 1: 'b'}.keys()", "{0: 'a'}.values()",
    "{0: 'a', 1: 'b'}.items()", "deque([0, 1, 2])", "itertools.chain([0], [1, 2])", "itertools.permutations('abc')",
    "itertools.islice(itertools.count(), 3)", "OrderedDict(a=1).keys()", "array.array('i', [0, 1])",
    "re.finditer('x', 'abc')", "[range(2), {0: 1}.items()]", "{'a': map(str, [1])}", "(deque([0]), zip())",
]  # fmt: skip


def as_list(expression):
    """Return the items of an iterable in ``ITERABLES``, and of the iterables in it."""
    namespace = {}
    exec("\n".join([*IMPORTS, f"value = {expression}"]), namespace)

    def listed(value):
        if isinstance(value, str | int | None):
            return value
        if isinstance(value, dict):
            return {key: listed(item) for key, item in value.items()}
        items = [listed(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items

    return listed(namespace["value"])


@pytest.mark.parametrize("expression", ITERABLES)
def test_iterables_are_judged_as_their_items(expression):
    expected = as_list(expression)
    other = [*expected, 3] if isinstance(expected, list) else (1, 2)
    assert asserted(expression, repr(expected)) == 1.0
    assert asserted(expression, repr(other)) == 0.0
    as_lists = [list(item) if isinstance(item, tuple) else item for item in expected]
    json_value = as_lists if isinstance(expected, list | tuple) else expected
    assert paired(expression, json_value) == 1.0
    assert paired(expression, [json_value, 4]) == 0.0


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("range(3)", "range(3)"),
        ("{1: 2}.keys()", "{1}"),
        ("{1: 2}.keys()", "{1: 3}.keys()"),
        ("deque([1, 2])", "deque([1, 2])"),
        ("map(str, [1])", "deque(['1'])"),
    ],
)
def test_iterables_equal_their_own_kind_too(expression, expected):
    assert asserted(expression, expected) == 1.0


def test_canonical_solutions_may_return_iterables():
    row = {
        "entry_point": "f",
        "base_input": [[3], [0]],
        "canonical_solution": "def f(n):\n    return map(str, range(n))",
    }
    assert reward("def f(n):\n    return [str(i) for i in range(n)]", **row) == 1.0
    assert reward("def f(n):\n    yield from map(str, range(n))", **row) == 1.0
    assert reward("def f(n):\n    return range(n)", **row) == 0.0


@pytest.mark.parametrize(
    "text",
    [ENDLESS, "import itertools\ndef f():\n    return itertools.repeat(0)", "def f():\n    return range(10**15)"],
    ids=["generator", "repeat", "range"],
)
def test_what_has_no_end_is_wrong_and_in_time(text):
    pairs = {"fn_name": "f", "inputs": [[]], "outputs": [[0, 1, 2]]}
    canonical = {"entry_point": "f", "base_input": [[]], "canonical_solution": "def f():\n    return [0, 1, 2]"}
    assert reward(text, pairs) == 0.0
    assert reward(text, **canonical) == 0.0
    assert reward(text, test_list=["assert f() == [0, 1, 2]"]) == 0.0
    assert reward(text, test_list=["assert list(f()) == [0, 1, 2]"]) == 0.0


def test_tests_may_take_items_from_what_has_no_end():
    test = "items = f()\nassert [next(items) for _ in range(40)] == list(range(40))\nassert next(items) == 40\n"
    assert reward(ENDLESS, test=test) == 1.0
    assert reward(ENDLESS.replace("n += 1", "n += 2"), test=test) == 0.0
    assert reward("def f():\n    return iter(range(30))", test=test) == 0.0


def test_items_are_not_used_up_by_a_check():
    test = "items = f([3, 1])\nassert sorted(items) == [1, 3]\nassert all(item % 2 == 0 for item in items)\n"
    assert reward("def f(x):\n    return (item for item in x)", test=test) == 0.0
    assert reward("def f(x):\n    yield from x", test=test.replace("== 0", "== 1")) == 1.0
    test = (
        "items = f([1, 2, 3])\nassert next(items) == 1 and list(items) == [2, 3] and next(items) == 2 and 3 in items\n"
    )
    assert reward("def f(x):\n    yield from x", test=test) == 1.0


def test_iterables_as_arguments():
    tests = ["assert f(range(3)) == 3", "assert f({1: 2, 3: 4}.values()) == 2", "assert f(deque([1])) == 1"]
    assert reward("def f(x):\n    return len(x)", test_imports=IMPORTS, test_list=tests) == 1.0
    tests = ["assert f(n for n in [1, 2, 3]) == 1", "assert f(iter([4])) == 4", "assert f(map(int, '5')) == 5"]
    assert reward("def f(x):\n    return next(x)", test_list=tests) == 1.0


@pytest.mark.parametrize(
    ("expression", "expected", "verdict"),
    [
        ("Fraction(1, 2)", 0.5, 1.0), ("Fraction(1, 2)", "1/2", 1.0), ("Fraction(4, 2)", 2, 1.0),
        ("Decimal('0.1')", 0.1, 1.0), ("Decimal('0.10')", "0.10", 1.0), ("Decimal('0.2')", 0.1, 0.0),
        ("datetime.date(2024, 1, 2)", "2024-01-02", 1.0), ("datetime.datetime(2024, 1, 2)", "2024-01-02T00:00:00", 1.0),
        ("datetime.datetime(2024, 1, 2)", "2024-01-02 00:00:00", 1.0), ("datetime.date(2024, 1, 2)", "2024-01-03", 0.0),
        ("datetime.date(2024, 1, 2)", datetime.date(2024, 1, 2), 1.0), ("Decimal('0.1')", decimal.Decimal("0.1"), 1.0),
        ("{1: {True: (2,)}, None: 1.5}", {"1": {"true": [2]}, "null": 1.5}, 1.0), ("{1: 2, '1': 3}", {"1": 3}, 0.0),
        ("(1, (2, 3))", [1, [2, 3]], 1.0), ("{1, 2}", [1, 2], 0.0), ("'ab'", ["a", "b"], 0.0), ("'[1]'", [1], 0.0),
        ("[Fraction(1, 2)]", "[Fraction(1, 2)]", 1.0), ("[Fraction(1, 3)]", "[Fraction(1, 2)]", 0.0),
        ("5", ["5"], 0.0), ("'5'", "5", 1.0), ("'True'", "True", 1.0), ("b'a'", "a", 0.0),
    ],
    ids=str,
)  # fmt: skip
def test_results_of_pairs(expression, expected, verdict):
    assert paired(expression, expected) == verdict


def test_pairs_as_python_s_literals():
    row = {"fn_name": "f", "inputs": ["(1, None)", "'a'\nTrue", '"b"'], "outputs": ["(None, 1)", "('a', True)", "'b'"]}
    text = "def f(x, y=0):\n    return tuple(reversed(x)) if isinstance(x, tuple) else x if y == 0 else (x, y)"
    assert reward(text, row) == 1.0
    assert reward("def f(x, y=0):\n    return x", row) == 0.0


NOT_PLAIN = [
    "print",
    "object()",
    "lambda: 1",
    "pathlib.Path('a')",
    "re.compile('a')",
    "type('C', (), {})",
    "open('/dev/null')",
]


@pytest.mark.parametrize("expression", NOT_PLAIN)
def test_a_result_of_any_other_type_is_wrong_where_plain_data_is_expected(expression):
    for expected in (None, 1, "print", [1]):
        assert paired(expression, expected) == 0.0, expected
    for expected in ("None", "Fraction(1)", "{}"):
        assert asserted(expression, expected) == asserted(f"[{expression}]", f"[{expected}]") == 0.0, expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"test_list": ["assert f() == pathlib.Path('a')"]}, "compare a result with a value of type pathlib.PosixPath"),
        (
            {"test_list": ["assert [f()] == [print]"]},
            "compare a result with a value of type builtin_function_or_method",
        ),
        ({"test": "class P: pass\nassert f() == P()"}, "compare a result with a value of type tests.P"),
        ({"test_list": ["assert f(lambda n: n) == 1"]}, "pass the code a value of type function"),
        ({"test_list": ["assert f(x=[pathlib]) == 1"]}, "pass the code a value of type module"),
        (
            {"answer": {"fn_name": "f", "inputs": [[[1]]], "outputs": [1]}, "starter_code": "def f(x: TreeNode): pass"},
            "takes or returns a TreeNode",
        ),
        (
            {"answer": {"fn_name": "f", "inputs": [[[1]]], "outputs": [[1]]}, "content": "Do not return anything!"},
            "changes an argument in place",
        ),
        ({"answer": {"fn_name": "f", "inputs": [[]], "outputs": [object()]}}, "hold a value of type object"),
        (
            {"answer": {"fn_name": "f", "inputs": [[[{1: print}]]], "outputs": [1]}},
            "of type builtin_function_or_method",
        ),
        ({"base_input": [[1]], "canonical_solution": "def f(x): return print", "entry_point": "f"}, "builtin_function"),
        (
            {
                "base_input": [[datetime.date(2024, 1, 1)]],
                "canonical_solution": "def f(x): return x",
                "entry_point": "f",
            },
            "cannot be sent to the sandbox: Object of type date",
        ),
    ],
)
def test_what_cannot_be_judged_is_an_error_that_names_the_type(row, message):
    answer = row.pop("answer", None)
    with pytest.raises(JudgeError) as error:
        reward(returning("pathlib.Path('a')"), answer, test_imports=IMPORTS, **row)
    assert message in str(error.value)


def test_verdicts_come_through_the_pool():
    options = {"sandbox": SETTINGS.sandbox}
    tests = ["assert f(2) == Fraction(1, 2)"]
    half = "from fractions import Fraction\ndef f(n): return Fraction(1, n)"
    rows = [
        (prompt(test_imports=IMPORTS, test_list=tests), half),
        (prompt(test_imports=IMPORTS, test_list=tests), "def f(n): return 1"),
        (prompt(test_imports=IMPORTS, test_list=["assert f(print) == 1"]), half),
        (prompt({"inputs": ["2"], "outputs": ["1000000000000000001"]}), "print(1e18)\nexit()"),
    ]
    with VerifierPool(workers=1, timeout_s=30.0) as pool:
        verdicts = pool.score([Job("code", row, text, options) for row, text in rows])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, None, 0.0]
    assert verdicts[2].error == (
        "the row's tests pass the code a value of type builtin_function_or_method, and only plain data can be sent to "
        "it or come from it"
    )


def test_numpy_s_arrays_and_numbers_where_tests_use_numpy():
    row = {"test_imports": ["import numpy as np"]}
    row["test_list"] = ["assert np.array_equal(f(np.array([1, 2])), np.array([2, 4]))", "assert f(np.int64(2)) == 4"]
    assert reward("def f(x):\n    return x * 2", **row) == 1.0
    assert reward("def f(x):\n    return x * 3", **row) == 0.0
