"""Rewards outside [0, 1] are refused at once; figures say what share of completions they leave out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli_process import CommandLine, Result, tiny_run

REWARD = """
def reward(completions, answer, **_):
    return [{right} if text.strip() == gold else {wrong} for text, gold in zip(completions, answer)]

def late(completions, answer, **_):
    import os
    value = 2.0 if os.path.exists("late") else 0.0
    return [1.0 if text.strip() == gold else value for text, gold in zip(completions, answer)]

def fails(completions, answer, **_):
    return [1.0 if text.strip() == gold else 0.0 if len(text) % 2 else 1 / 0 for text, gold in zip(completions, answer)]
"""


def config(verifier: str = "reward.py:reward", **sections: Any) -> dict[str, Any]:
    task = {"source": "skills", "options": {"size": 64}, "verifier": verifier}
    held = {"source": "skills", "name": "held", "split": "test", "options": {"size": 16}, "verifier": verifier}
    return tiny_run(data={"train": [task], "eval": [held]}, **sections)


def assert_refused(result: Result, *said: str) -> None:
    assert result.code == 2, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("pacedrl: ")]
    assert len(lines) == 1, result.err
    for text in said:
        assert text in lines[0]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [("1.0", "-1.0", "returned -1.0"), ("2.0", "0.0", "returned 2.0"), ("float('nan')", "0.0", "returned nan")],
)
def test_every_command_refuses_them(cli: CommandLine, right: str, wrong: str, said: str) -> None:
    cli.write("reward.py", REWARD.format(right=right, wrong=wrong))
    cli.write("c.yaml", config())
    said = f"reward.py:reward {said}, but a reward lies in [0, 1]: scale it, e.g. return (reward + 1) / 2"
    for overrides in ((), ("verifier.check_gold=false",), ("verifier.check_gold=false", "data.eval=[]")):
        assert_refused(cli("train", "c.yaml", *overrides), said)
        assert not list((cli.folder / "run").glob("checkpoints/*"))
    assert_refused(cli("eval", "tiny", "--config", "c.yaml"), said)
    doctor = cli("doctor", "c.yaml")
    assert doctor.code == 2
    assert sum(said in line and line.startswith("fail") for line in doctor.out.splitlines()) == 2  # of both tasks


def test_rewards_out_of_range_of_a_part_name_its_verifier(cli: CommandLine) -> None:
    cli.write("reward.py", REWARD.format(right="1.0", wrong="-1.0"))
    tree = config("exact")
    tree["data"]["train"][0]["extra_rewards"] = [{"name": "p", "verifier": "reward.py:reward", "weight": 0.1}]
    cli.write("c.yaml", tree)
    assert_refused(cli("train", "c.yaml"), "reward.py:reward returned -1.0")


def test_a_reward_out_of_range_late_in_a_run_is_a_counted_error(cli: CommandLine) -> None:
    cli.write("reward.py", REWARD.format(right=1, wrong=0))
    cli.write("c.yaml", config("reward.py:late", run={"steps": 4}, eval={"every": 0}))
    result = cli("train", "c.yaml", patch=late_after_two_steps)
    assert result.code == 0, result.err
    rows = cli.rows("run/metrics.jsonl")
    assert [row["verifier/errors"] > 0 for row in rows] == [False, False, True, True]
    assert "the verifier failed on" in result.err
    assert any("outside [0, 1]: 2.0" in (row["error"] or "") for row in cli.rows("run/samples.jsonl"))
    share = cli.rows("run/eval.jsonl")[-1]["held/left_out"]
    assert share > 0.02
    said = f"({share:.0%} not judged)"
    assert said in result.out, "the table of before and after"
    assert said in result.err, "the line of the evaluation"
    report = cli("report", "run")
    assert said in report.out


def late_after_two_steps() -> None:
    from pathlib import Path

    from pacedrl.training.learner import Learner

    update = Learner.update

    def patched(self: Learner, batch: Any, step: int, *more: Any) -> Any:
        if step == 1:
            Path("late").touch()
        return update(self, batch, step, *more)

    Learner.update = patched  # type: ignore[method-assign]


def test_a_figure_with_completions_missing_says_so(cli: CommandLine) -> None:
    cli.write("reward.py", REWARD.format(right=1, wrong=0))
    cli.write("c.yaml", config("reward.py:fails", run={"steps": 2}, eval={"every": 0}))
    evaluated = cli("eval", "tiny", "--config", "c.yaml", "--json", "-")
    assert evaluated.code == 0, evaluated.err
    (task,) = json.loads(evaluated.out)["results"]
    assert 0 < task["errors"] < task["completions"] == 16 * 4
    shown = cli("eval", "tiny", "--config", "c.yaml").out
    share = task["errors"] / task["completions"]
    assert f"failed on {task['errors']} of 64 completions ({share:.1%})" in " ".join(shown.split())
    trained = cli("train", "c.yaml")
    assert trained.code == 0, trained.err
    before, after = (row["held/left_out"] for row in cli.rows("run/eval.jsonl"))
    assert before == share
    assert f"held ({max(before, after):.0%} not judged)" in trained.out
    assert f"({before:.0%} not judged)" in trained.err
    row = cli.rows("run/metrics.jsonl")[0]
    assert f"({row['verifier/errors'] / row['rollouts/step']:.0%} not judged)" in trained.err
