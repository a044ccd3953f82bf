"""Tests of EvalPlus' rows, and of the canonical solutions of three public data sets."""

import random
import time

import pytest
from code_helpers import DOUBLE, HEAD, SETTINGS, reward
from public_sets import CODE_FILES, code_rows, mutated, row_prompt

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import verifier as code
from pacedrl.tasks.code.candidate import assemble
from pacedrl.tasks.code.verifier import CodeSettings, code_reward

SAMPLE = 6
SLOW_ROWS = {"HumanEval/15", "HumanEval/36", "HumanEval/59", "HumanEval/83", "HumanEval/94", "HumanEval/130"}
SLOW_ROWS |= {"HumanEval/139", *(f"Mbpp/{n}" for n in (84, 123, 255, 271, 300, 389, 392, 589, 592, 599, 603))}


def rows(dataset):
    try:
        return code_rows(dataset)
    except FileNotFoundError as error:
        pytest.skip(f"{error.filename} is not here")


def test_evalplus():
    row = {
        "content": HEAD,
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "base_input": [[2], [[1]], [0.1]],
        "plus_input": [["a"]],
        "atol": 0,
        "contract": "",
    }
    assert reward("    return x + x + (1e-9 if isinstance(x, float) else 0 * x)", **row) == 1.0
    assert reward("    return x + x if x != 'a' else 'a'", **row) == 0.0
    assert reward("    return tuple(x + x) if isinstance(x, list) else x + x", **row) == 0.0


def test_evalplus_inputs_have_the_types_of_the_assertions():
    row = {
        "entry_point": "f",
        "canonical_solution": "def f(a, b, c):\n    return type(a) is tuple, type(a[0]) is list, {5} >= b, c.imag\n",
        "assertion": "assert f(([1], 2), {1, 2}, 1j) == 0",
        "base_input": [[[[1], 2], [1, 2], "1j"]],
        "plus_input": [[[[3], 4], [5], "(1+2j)"]],
    }
    assert reward(row["canonical_solution"].replace("type(a) is tuple", "True"), **row) == 1.0
    check = "def f(a, b, c):\n    return True, True, b == {5}, {1: 1.0, 5: 2.0}[min(b)]"
    assert reward(check, **row) == 1.0


def test_strings_stay_strings_beside_numbers():
    row = {
        "entry_point": "count",
        "canonical_solution": "def count(items, item):\n    return items.count(item)\n",
        "assertion": "assert count([1], 1) == 1\nassert count(['A'], 'A') == 1",
        "base_input": [[[1], 1], [["A"], "A"]],
        "plus_input": [[["5"], "5"], [["J"], "J"]],
    }
    assert reward("def count(items, item):\n    return 1", **row) == 1.0


def test_tuples_beside_numbers_may_be_nested_deeper_than_in_the_assertions():
    depth = "def depth(x):\n    return 1 + max(map(depth, x), default=0) if isinstance(x, {}) else 0\n"
    row = {"entry_point": "depth", "canonical_solution": depth.format("(list, tuple)"), "base_input": [[[1, [2]]]]}
    nested = {**row, "assertion": "assert depth((1, (2,))) == 2", "plus_input": [[[1, [2, [3, [4]]]]]]}
    assert reward(depth.format("tuple"), **nested) == 1.0
    flat = {**row, "assertion": "assert depth([(1,), (2,)]) == 2", "base_input": [[[[1], [2]]]]}
    assert reward(depth.format("(list, tuple)"), **flat, plus_input=[[[[[3]]]]]) == 1.0
    assert reward(depth.format("tuple"), **flat) == 0.0


@pytest.mark.parametrize(
    ("name", "canonical", "other", "wrong"),
    [
        (
            "surface_Area",
            "    return 2 * b * s + pow(b, 2)",
            "    return round(b * b + 2 * b * (b * b / 4 + s * s) ** 0.5)",
            "    return 2 * b * s",
        ),
        (
            "digit_distance_nums",
            "    return sum(abs(int(x) - int(y)) for x, y in zip(str(b), str(s)))",
            "    n = len(str(max(b, s)))\n"
            "    return sum(abs(int(x) - int(y)) for x, y in zip(str(b).zfill(n), str(s).zfill(n)))",
            "    return abs(b - s)",
        ),
    ],
)
def test_other_readings_of_two_questions_are_right_too(name, canonical, other, wrong):
    head = f"def {name}(b, s):\n"
    row = {"entry_point": name, "canonical_solution": head + canonical, "base_input": [[123, 45], [9, 1234]]}
    assert reward(head + canonical, **row) == reward(head + other, **row) == 1.0
    assert reward(head + wrong, **row) == 0.0


LATE = "import time\ndef late(x):\n    time.sleep({})\n    return x\n"


def test_a_slow_canonical_solution_gives_completions_four_times_its_time():
    row = {"entry_point": "late", "canonical_solution": LATE.format(0.5), "base_input": [[1]]}
    settings = CodeSettings(SETTINGS.sandbox, timeout_s=0.3)
    assert reward(LATE.format(0.9), settings=settings, **row) == 1.0
    assert reward(LATE.format(4), settings=settings, **row) == 0.0


def test_a_canonical_solution_that_takes_too_long_is_an_error(monkeypatch):
    monkeypatch.setattr(code, "START_LIMIT_S", 1.0)
    monkeypatch.setattr(code, "CANONICAL_LIMIT_S", 0.5)
    row = {"entry_point": "late", "canonical_solution": LATE.format(9), "base_input": [[1]]}
    with pytest.raises(JudgeError, match="nothing happened for too long"):
        reward(LATE.format(0), **row)


def test_what_a_canonical_solution_answered_is_remembered_and_asked_once(monkeypatch):
    monkeypatch.setattr(code, "_answers", {})
    monkeypatch.setattr(code, "_REMEMBERED", 2)
    row = {"entry_point": "late", "canonical_solution": LATE.format(1), "base_input": [[1]], "plus_input": [[[2]]]}
    assert reward(LATE.format(0), **row) == 1.0
    ((known),) = code._answers.values()
    assert known["answers"] == ["1", "[2]"]
    assert 2.0 <= known["seconds"] < 4.0
    start = time.monotonic()
    assert reward(LATE.format(0), **row) == 1.0
    assert reward("def late(x):\n    return 1", **row) == 0.0
    assert time.monotonic() - start < 2.0
    for answer in range(3):  # the oldest is forgotten
        reward(DOUBLE, entry_point="double", canonical_solution=DOUBLE, base_input=[[answer]])
    assert [known["answers"] for known in code._answers.values()] == [["2"], ["4"]]


def test_inputs_whose_results_are_too_large_are_not_asked():
    row = {
        "entry_point": "many",
        "canonical_solution": "def many(n):\n    return ['ab' * 100] * n\n",
        "base_input": [[1]],
        "plus_input": [[100_000], [10**10]],  # 20 MB, and more memory than there is
    }
    assert reward("def many(n):\n    return ['ab' * 100] if n == 1 else None", **row) == 1.0
    assert reward("def many(n):\n    return []", **row) == 0.0
    with pytest.raises(JudgeError, match="the canonical solution's results are all too large for the sandbox"):
        reward(DOUBLE, **{**row, "base_input": [[10**10]], "plus_input": []})


@pytest.mark.parametrize("dataset", CODE_FILES)
def test_a_sample_of_canonical_solutions_is_accepted(dataset):
    fast = [row for row in rows(dataset) if row["task_id"] not in SLOW_ROWS]
    for row in random.Random(1).sample(fast, SAMPLE):
        assert code_reward(row_prompt(row), row["canonical_solution"], SETTINGS) == 1.0, row["task_id"]


@pytest.mark.slow
@pytest.mark.parametrize("dataset", CODE_FILES)
def test_all_canonical_solutions_are_accepted(dataset):
    verdicts = {
        row["task_id"]: code_reward(row_prompt(row), row["canonical_solution"], SETTINGS) for row in rows(dataset)
    }
    assert [name for name, verdict in verdicts.items() if verdict != 1.0] == []


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "least"), [("humaneval", 0.8), ("humaneval_plus", 0.85), ("mbpp_plus", 0.85)])
def test_mutated_solutions_mostly_fail(dataset, least):
    fast = [row for row in rows(dataset) if row["task_id"] not in SLOW_ROWS]
    pairs = [
        (row, mutated(assemble(row["canonical_solution"], row["prompt"], row["entry_point"]), seed))
        for seed, row in enumerate(fast)
    ]
    verdicts = [code_reward(row_prompt(row), source, SETTINGS) for row, source in pairs if source is not None]
    assert verdicts.count(0.0) / len(verdicts) > least
