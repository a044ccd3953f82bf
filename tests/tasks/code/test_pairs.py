"""Tests of pairs of inputs and outputs, in the forms of public data sets."""

import json

import pytest
from code_helpers import DOUBLE, reward

from pacedrl.errors import JudgeError

CALLS = [
    {"type": "function_call", "fn_name": "double", "input": [1], "output": [2]},
    {"type": "function_call", "fn_name": "double", "input": [[1]], "output": [[1, 1]]},
]
RUNS = [{"type": "stdin_stdout", "fn_name": None, "input": "1\n", "output": "2\n"}]


@pytest.mark.parametrize(
    "row",
    [
        {"tests": CALLS},
        {"answer": json.dumps(CALLS)},
        {"verification_info": json.dumps({"language": "python", "test_cases": CALLS})},
        {"tests": [{**case, "output": case["output"][0]} for case in CALLS]},
    ],
)
def test_calls_of_the_function_that_a_pair_names(row):
    assert reward(DOUBLE, **row) == 1.0
    assert reward("class Solution:\n    def double(self, x): return x + x", **row) == 1.0
    assert reward("def double(x): return 2 * x if x == [1] else 3", **row) == 0.0
    assert reward("def twice(x): return 2 * x", **row) == 0.0


def test_programs_beside_a_name():
    for case in (RUNS[0], {**RUNS[0], "fn_name": "double"}):
        assert reward("print(2 * int(input()))", tests=[case]) == 1.0
        assert reward(DOUBLE, tests=[case]) == 0.0


def test_pairs_that_name_different_functions_are_an_error():
    with pytest.raises(JudgeError, match="no 'fn_name' or 'func_name' in 'metadata' says which one"):
        reward(DOUBLE, tests=[CALLS[0], {**CALLS[1], "fn_name": "twice"}])


@pytest.mark.parametrize(("text", "value"), [("[[]]", "[]"), ('[""]', "''"), ("[null]", "None"), ("[5]", "5")])
def test_text_that_says_a_list_of_one_wants_a_list(text, value):
    functional = {"tests": [{"input": "1", "output": text, "testtype": "functional"}], "metadata": {"func_name": "f"}}
    two = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [json.loads(text), [1, 2]]}
    for row in (functional, {"answer": {"fn_name": "f", "inputs": ["1"], "outputs": [text]}}):
        assert reward(f"def f(x): return {value}", **row) == 0.0
        assert reward(f"def f(x): return [{value}]", **row) == 1.0
    assert reward(f"def f(x): return {value} if x == 1 else [1, 2]", two) == 0.0
    assert reward(f"def f(x): return [{value}] if x == 1 else [1, 2]", two) == 1.0
    wrapped = {"fn_name": "f", "inputs": [[1]], "outputs": [json.loads(text)]}
    assert reward(f"def f(x): return {value}", wrapped) == reward(f"def f(x): return [{value}]", wrapped) == 1.0
