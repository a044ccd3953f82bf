"""Tests of what counts as a completion's code, and of the kinds of tests that a row can have."""

import json

import pytest
from code_helpers import DOUBLE, HEAD, SETTINGS, prompt, reward

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.candidate import assemble
from pacedrl.tasks.code.compare import prints_the_same, same
from pacedrl.tasks.code.values import NotPlainDataError, decode, encode
from pacedrl.tasks.code.verifier import CodeSettings, find_tests

CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate([1]) == [1, 1]\n"


@pytest.mark.parametrize(
    "text",
    [
        DOUBLE,
        "def helper(x):\n    return x\n\ndouble = lambda x: helper(x) + math.floor(x)",
        "    return 2 * x",
        "    return 2 * x\n\nprint(double(3))",
        "    return 2 * x\n\nThat is all.",
        "return 2 * x",
        "y = x\nreturn x + y",
        "class Solution:\n    def double(self, x):\n        return x + x",
    ],
)
def test_whole_functions_and_bodies(text):
    namespace = {}
    exec(assemble(text, HEAD, "double"), namespace)
    double = namespace["Solution"]().double if "Solution" in namespace else namespace["double"]
    assert double(4) == 8


def test_prose_is_no_part_of_the_program():
    assert assemble(DOUBLE, "Write double(x).", "double") == assemble(DOUBLE, "", None) == "\n" + DOUBLE


@pytest.mark.parametrize(
    "row",
    [
        {"answer": {"inputs": ["2\n", "5"], "outputs": ["4\n", "10 \n\n"]}},
        {"answer": json.dumps({"inputs": ["2"], "outputs": ["4"]})},
        {"input_output": json.dumps([{"input": "2", "output": "4", "type": "stdin_stdout"}])},
        {"tests": {"inputs": [["2", ""]], "outputs": [["4"]]}},
    ],
)
def test_programs(row):
    assert reward("```python\nprint(2 * int(input()))\n```", **row) == 1.0
    assert reward(
        "import sys\nif __name__ == '__main__':\n    print(2 * int(sys.stdin.readline()))\n    sys.exit()", **row
    )
    assert reward("print(3 * int(input()))", **row) == 0.0
    assert reward("print(4)\nraise ValueError", **row) == 0.0
    assert reward("print(4)\nexit(1)", **row) == 0.0
    assert reward("This is no program", **row) == 0.0


def test_each_run_of_a_program_starts_anew():
    text = "import builtins\nn = getattr(builtins, 'n', 0) + 1\nbuiltins.n = n\nprint(n)"
    assert reward(text, {"inputs": ["", "", ""], "outputs": ["1", "1", "1"]}) == 1.0


@pytest.mark.skipif(SETTINGS.sandbox == "rlimits", reason="there the user's other processes count as well")
def test_programs_with_threads_and_deep_recursion():
    text = (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(64 << 20)\n"
        "def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(int(input()))))\nt.start()\nt.join()"
    )
    assert reward(text, {"inputs": ["50000"], "outputs": ["50000"]}) == 1.0


@pytest.mark.parametrize(
    ("printed", "expected", "verdict"),
    [
        ("1 2\n3\n", "1 2  \n3", True),
        ("1 2 3", "1 2\n3", False),
        ("  1", "1", True),
        ("0.3333333", "0.33333334", True),
        ("0.333", "0.33333334", False),
        ("1e3 x", "1000.0 x", True),
        ("1e3 y", "1000.0 x", False),
        ("100000001", "100000000", False),
        ("100000000.5", "100000000", False),
        ("3.0", "3", True),
        ("03", "3", False),
        ("nan", "0.0", False),
        ("inf", "1e400", False),
        ("1_0.0", "10.0", False),
        ("YES", "yes", False),
        ("", "", True),
    ],
)
def test_comparison_of_output(printed, expected, verdict):
    assert prints_the_same(printed, expected) is verdict


def test_functions_of_pairs():
    row = {"fn_name": "double", "inputs": [[2], "3", [[1]]], "outputs": [4, "6", [1, 1]]}
    assert reward(DOUBLE, row) == 1.0
    assert reward("class Solution:\n    def double(self, x):\n        return x + x", row) == 1.0
    assert reward("def double(x):\n    return tuple(2 * x) if isinstance(x, list) else 2 * x", row) == 1.0
    assert reward("def double(x):\n    return 4", row) == 0.0
    assert reward(DOUBLE, tests=[{"input": "2", "output": "4", "metadata": {"func_name": "double"}}]) == 1.0
    row = {"tests": [{"input": "2", "output": "4", "testtype": "functional"}], "metadata": '{"func_name": "double"}'}
    assert reward(DOUBLE, **row) == 1.0
    assert reward("def double(x):\n    return x", **row) == 0.0


def test_assertions():
    row = {"test_list": ["assert math.isclose(double(1.5), 3)", "assert double((1,)) == (1, 1)"]}
    row["test_imports"] = ["import math"]
    assert reward(f"```python\n{DOUBLE}```", **row) == 1.0
    assert reward("def double(x):\n    return [*x, *x] if isinstance(x, tuple) else 2 * x", **row) == 0.0
    assert reward("def twice(x):\n    return 2 * x", **row) == 0.0


def test_names_that_tests_bind_in_any_way_are_not_the_candidate_s():
    test = (
        "async def helper(x):\n    return x\n"
        "match [1, 2, {'k': 3}]:\n    case [first, *others, {**more}]:\n        assert double(first) == 2\n"
        "match 3:\n    case whole:\n        assert double(whole) == 6 and others == [2] and more == {'k': 3}\n"
    )
    assert reward(DOUBLE, test=test) == 1.0
    assert reward("def double(x):\n    return x", test=test) == 0.0


def test_exceptions_arrive_as_the_nearest_built_in_one():
    test = (
        "try:\n    double(1)\nexcept LookupError as error:\n    assert type(error) is KeyError and 'no' in str(error)\n"
    )
    test += "else:\n    assert False\n"
    assert reward("class Mine(KeyError):\n    pass\ndef double(x):\n    raise Mine('no')", test=test) == 1.0
    assert reward("def double(x):\n    raise ValueError('no')", test=test) == 0.0
    assert reward(DOUBLE, test=test) == 0.0


def test_check_of_a_candidate():
    row = {"content": HEAD, "test": CHECK, "entry_point": "double"}
    assert reward("    return 2 * x", **row) == 1.0
    assert reward(f"Here:\n```python\n{DOUBLE}```", **row) == 1.0
    assert reward("    return x ** 2", **row) == 0.0
    chat = [{"role": "user", "content": f"Complete this:\n```python\n{HEAD}```"}]
    assert reward("    return 2 * x", **{**row, "content": chat}) == 1.0


def test_helpers_of_the_prompt_are_the_prompt_s_in_the_tests():
    head = "def double(x):\n    return 2 * x\n\n\ndef half(y):\n"
    check = "def check(candidate):\n    assert candidate(double(3)) == 3\n"
    row = {"content": head, "test": check, "entry_point": "half"}
    assert reward("    return y / 2", **row) == 1.0
    assert reward("def double(x):\n    return 3\n\ndef half(y):\n    return y", **row) == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "the row has no tests: expected 'test'"),
        ({"answer": "42"}, "the row has no tests"),
        ({"answer": {"inputs": ["1"], "outputs": []}}, "are not two lists of the same length"),
        ({"test": CHECK}, "no column 'entry_point'"),
        ({"base_input": [[1]], "canonical_solution": "x"}, "no column 'entry_point'"),
        ({"test_list": ["assert double(1) =="]}, "the row's tests do not work: SyntaxError"),
        ({"test_list": ["assert double(1) == triple(1)"]}, "names that nothing defines: double, triple"),
        ({"test_list": ["assert double(1) == 2"], "test_imports": ["import nothing"]}, "ModuleNotFoundError"),
        ({"test_list": ["double"]}, "never call the function"),
        ({"test": "import nothing_there\nassert double(1) == 2"}, "the row's tests do not work: ModuleNotFoundError"),
        ({"test": "assert [].x == double(1)"}, "the row's tests do not work: AttributeError"),
        ({"tests": [{"input": "1", "output": "2", "testtype": "functional"}]}, "no 'fn_name' or 'func_name' in"),
        ({"tests": [{"input": [1], "output": [2], "type": "function_call"}]}, "no 'fn_name' or 'func_name' in"),
        ({"test_list": ["assert double(print)"]}, "pass the code a value of type builtin_function_or_method"),
        ({"test": "def check(c):\n    pass", "entry_point": "double"}, "never call the function"),
    ],
)
def test_tests_that_cannot_be_used_are_errors_and_no_zero(row, message):
    with pytest.raises(JudgeError) as error:
        reward(DOUBLE, **row)
    assert message in str(error.value)


def test_tests_may_use_numpy_where_it_is_installed():
    row = {"test_imports": ["import numpy as np"], "test_list": ["assert np.allclose(double([0.5]), [0.5, 0.5])"]}
    assert reward(DOUBLE, **row) == 1.0
    assert reward("import numpy\n" + DOUBLE, **row) == 1.0


def test_a_sandbox_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_START", "raise SystemExit('no start: {program}') # {settings}")
    with pytest.raises(JudgeError, match=r"the tests did not start: no start: (driver|candidate)"):
        reward(DOUBLE, test_list=["assert double(2) == 4"], settings=CodeSettings("rlimits"))


def test_integers_may_be_long():
    row = {"test_list": ["assert double(10**6000) == 2 * 10**6000", "assert double([10**6000, 0.5])[0] == 10**6000"]}
    assert reward(DOUBLE, **row) == 1.0


def test_the_time_limit_is_that_of_the_settings():
    settings = CodeSettings(SETTINGS.sandbox, timeout_s=0.5)
    slow = "import time\ndef double(x):\n    time.sleep(1)\n    return 2 * x"
    row = {"test_list": ["assert double(2) == 4"]}
    assert reward(slow, settings=settings, **row) == 0.0
    assert reward(slow, **row) == 1.0


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, -(10**4000), 0.1, float("inf"), -0.0, 2 - 1j, "é\ud800\n", b"\x00\xff", [1, [2, (3, {4})]],
        {(1, 2): [{"a": frozenset({5})}], None: {}}, (), set(), {},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_data_arrives_as_it_was(value):
    arrived = decode(json.loads(json.dumps(encode(value))))
    assert arrived == value
    assert type(arrived) is type(value)
    assert str(arrived)[:9] == str(value)[:9] if not isinstance(value, int) else True


def test_decoding_twice_gives_two_values():
    decode(message := encode([[1, 2], 3]))[0].append(4)
    assert decode(message) == [[1, 2], 3]


@pytest.mark.parametrize("value", [object(), len, iter([]), range(3), {1: [print]}, (x for x in ())])
def test_other_types_are_not_plain_data(value):
    with pytest.raises(NotPlainDataError):
        encode(value)


def test_subclasses_are_sent_as_what_they_extend():
    equal = type("Equal", (int,), {"__eq__": lambda self, other: True})(3)
    arrived = decode(json.loads(json.dumps(encode([equal]))))
    assert arrived == [3] != [4]
    assert type(arrived[0]) is int


@pytest.mark.parametrize(
    ("value", "expected", "verdict"),
    [
        (1, 1.0, True), ([0.1 + 0.2], [0.3], True), ((0.3,), [0.3], False), (float("nan"), float("nan"), True),
        ({"a": 0.30000001}, {"a": 0.3}, True), (float("inf"), 1.0, False), ("a", "b", False), ([1], [1, 2], False),
        (float("inf"), float("-inf"), False), (None, 0.0, False), (10**400, 1e300, False),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_comparison_of_results(value, expected, verdict):
    try:
        got = same(value, expected)
    except OverflowError:  # counts as a failure
        got = False
    assert got is verdict


def test_find_tests_prefers_the_strictest_kind():
    plus = {"base_input": [[1]], "canonical_solution": "x", "entry_point": "double"}
    assert find_tests(prompt(test=CHECK, **plus))["kind"] == "evalplus"
    assert find_tests(prompt({"inputs": ["1"], "outputs": ["1"]}, test=CHECK, entry_point="f"))["kind"] == "code"
