"""Games whose gold answer is in several columns of a row, or is text."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import load_task
from pacedrl.tasks.verifiers import gold_completion, judge, resolve

COUNTDOWN = {"numbers": [1, 2, 3], "target": 6}
ROLES = {"names": ["Zoey", "Ann"], "solution": [True, False]}


def first(source, verifier, **options):
    options = {"prompt_template": "Play."} | options
    return load_task(TaskConfig(source=str(source), verifier=verifier, **options)).prompts[0]


@pytest.mark.parametrize(
    ("game", "row", "gold"),
    [
        ("countdown", {"nums": [1, 2, 3], "target": 6}, COUNTDOWN),
        ("countdown", {"numbers": [1, 2, 3], "target": 6}, COUNTDOWN),
        ("countdown", {"Nums": [1.0, 2.0, 3.0], "Target": 6.0}, COUNTDOWN),
        ("countdown", {"nums": "[1, 2, 3]", "target": "6"}, COUNTDOWN),
        ("countdown", {"nums": "[1 2 3]", "target": "6"}, COUNTDOWN),
        ("countdown", {"answer": json.dumps(COUNTDOWN)}, COUNTDOWN),
        ("countdown", {"answer": str(COUNTDOWN)}, COUNTDOWN),
        ("countdown", {"answer": {"nums": [1, 2, 3], "target": 6}}, COUNTDOWN | {"nums": [1, 2, 3]}),
        ("countdown", {"reward_model": {"ground_truth": COUNTDOWN}, "nums": [9], "target": 9}, COUNTDOWN),
        ("knights_knaves", ROLES, ROLES),
        ("knights_knaves", {name: str(value) for name, value in ROLES.items()}, ROLES),
        ("knights_knaves", {"ground_truth": json.dumps(ROLES)}, ROLES),
    ],
)
def test_the_gold_answer_is_put_together_and_judged(rows_file, game, row, gold):
    prompt = first(rows_file(row), game)
    assert prompt.answer == gold
    assert judge(resolve(game), prompt, gold_completion(game, prompt)).reward == 1.0
    assert judge(resolve(game), prompt, "<answer>1</answer>").reward == 0.0


def test_of_parquet_and_csv(write, tmp_path):
    pq.write_table(pa.table({"nums": [[1, 2, 3]], "target": [6]}), tmp_path / "rows.parquet")
    assert first(tmp_path / "rows.parquet", "countdown").answer == COUNTDOWN
    path = write("rows.csv", 'nums,target\n"[1, 2, 3]",6\n')
    prompt = first(path, "countdown", prompt_template="Make {target} of {nums}.")
    assert (prompt.content, prompt.answer) == ("Make 6 of [1, 2, 3].", COUNTDOWN)


def test_the_game_of_24_stays_a_string(rows_file):
    assert first(rows_file({"answer": "1 1 4 6"}), "countdown").answer == "1 1 4 6"


def test_other_verifiers_read_their_own_column(rows_file):
    assert first(rows_file({"nums": [1, 2, 3], "target": 6}), "numeric").answer == 6


def test_rows_without_a_game(rows_file):
    with pytest.raises(InputError, match=r"line 1: no answer column \(.*\), and the verifier 'countdown' needs one"):
        first(rows_file({"digits": [1, 2]}), "countdown")
    rows = [{"nums": [1, 5], "target": 6}, {"nums": None, "target": None}]
    with pytest.raises(InputError, match=r"line 2: the answer \(column 'target'\) is empty"):
        first(rows_file(*rows), "countdown")
    prompt = first(rows_file({"digits": [1, 5], "target": 6}), "countdown")
    assert "name the columns numbers (or nums) and target" in judge(resolve("countdown"), prompt, "1 + 5").error
