"""Composed rewards in the real loop: they change training, but not accuracies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_process import CommandLine, tiny_run

from pacedrl import Config, Trainer

PARTS = """
def short(completions):
    return [float(len(text) <= 3) for text in completions]
"""


def trainer_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, **sections: Any) -> Trainer:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    (tmp_path / "parts.py").write_text(PARTS)
    data = {"train": [{"source": "skills", "options": {"size": 64}, **sections.pop("task", {})}], "eval": []}
    return Trainer(Config.model_validate(tiny_run(str(tmp_path / name), data=data, **sections)))


def rows(folder: Path, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


def test_parts_shape_the_policy_and_leave_accuracy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"name": "short", "verifier": f"{tmp_path}/parts.py:short", "weight": 0.5}
    plain = trainer_of(tmp_path, monkeypatch, "plain", run={"steps": 1}, eval={"every": 0})
    shaped = trainer_of(
        tmp_path, monkeypatch, "shaped", task={"extra_rewards": [part]}, run={"steps": 1}, eval={"every": 0}
    )
    seen: dict[str, list[float]] = {}
    for name, trainer in (("plain", plain), ("shaped", shaped)):
        update = trainer.learner.update

        def recorded(batch: Any, *more: Any, name: str = name, update: Any = update) -> Any:
            seen[name] = [sequence.advantage for sequence in batch]
            return update(batch, *more)

        monkeypatch.setattr(trainer.learner, "update", recorded)
        trainer.train()
    (before,), (after,) = rows(tmp_path / "plain"), rows(tmp_path / "shaped")
    # The same seed samples the same completions, so their verdicts are also the same.
    for name in ("reward/mean", "reward/mixed_groups", "accuracy/observed_mean", "accuracy/mae", "replay/admitted"):
        assert after[name] == before[name]
    assert torch.equal(plain.scheduler.log_z(list(plain.prompts)), shaped.scheduler.log_z(list(shaped.prompts)))
    extra = np.array(seen["shaped"]) - np.array(seen["plain"])
    beta = plain.config.objective.beta  # type: ignore[union-attr]
    assert set(np.round(extra * beta, 5)) == {0.0, 0.5}
    assert after["reward/part/short"] == pytest.approx(float(np.mean(extra * beta)), abs=1e-5)
    assert after["reward/total_mean"] == pytest.approx(after["reward/mean"] + after["reward/part/short"])
    assert {"short"} == set(rows(tmp_path / "shaped", "samples.jsonl")[0]["parts"])


def test_the_overlong_penalty_is_of_the_length_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(
        tmp_path,
        monkeypatch,
        "run",
        run={"steps": 1, "samples_per_step": 100},
        eval={"every": 0},
        reward={"overlong_buffer": 8, "overlong_penalty": 2.0},
    )
    trainer.train()
    (row,) = rows(tmp_path / "run")
    assert -2.0 <= row["reward/part/overlong"] < 0.0
    for sample in rows(tmp_path / "run", "samples.jsonl"):
        tokens = len(sample["completion"]) + (sample["finish_reason"] == "stop")  # one token per character
        assert sample["parts"]["overlong"] == pytest.approx(-2.0 * min(max((tokens - 4) / 8, 0.0), 1.0))


def test_bad_parts_and_options_are_refused_in_one_line(cli: CommandLine) -> None:
    part = {"name": "a", "verifier": "numeric", "weight": 1.0}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"extra_rewards": [part, part]}, "extra_rewards: the name 'a' is taken"),
        ({"extra_rewards": [{**part, "verifier": "numeri"}]}, "unknown verifier 'numeri': did you mean 'numeric'?"),
        ({"extra_rewards": [{"name": "a", "verifier": "numeric"}]}, "data.train.0.extra_rewards.0.weight"),
        ({"verifier": "math", "verifier_options": {"unit": "strict"}}, "no option 'unit': did you mean 'units'?"),
        (
            {"verifier": "code", "verifier_options": {"sandbox": "rlimits", "timeout_s": 20.0}},
            "verifier.timeout_s: 10 s is too little for the code of task skills",
        ),
    ]
    for task, said in cases:
        cli.write(
            "c.yaml", tiny_run(data={"train": [{"source": "skills", "options": {"size": 64}, **task}], "eval": []})
        )
        result = cli("train", "c.yaml")
        assert result.code == 2
        assert said in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("verifier", ["raises", "wrong"])
def test_a_run_of_which_nothing_can_be_judged_does_not_start(cli: CommandLine, verifier: str) -> None:
    cli.write(
        "bad.py",
        "def raises(completions, **_):\n    raise SystemExit('no key')\n"
        "def wrong(prompt, completion):\n    return [1.0]\n",
    )
    task = {"source": "skills", "options": {"size": 64}, "verifier": f"bad.py:{verifier}"}
    cli.write("c.yaml", tiny_run(data={"train": [task], "eval": []}, verifier={"check_gold": False}))
    result = cli("train", "c.yaml")
    assert result.code == 2
    said = {"raises": "SystemExit: no key", "wrong": "needs 'prompt', which is not a column"}[verifier]
    assert "completions could be judged; the verifier's commonest error: " in result.err
    assert said in result.err
    assert "did you mean 'prompts'?" in result.err or verifier == "raises"
    assert not (cli.folder / "run" / "checkpoints").exists()


def test_a_verifier_that_stops_working_ends_the_run_after_three_steps(cli: CommandLine) -> None:
    cli.write(
        "fails.py",
        "import pathlib\ndef reward(completions, answer):\n"
        "    if pathlib.Path('run/metrics.jsonl').exists():\n"
        "        raise ConnectionError('the judge is down')\n    return [float(completions[0] == answer[0])]\n",
    )
    task = {"source": "skills", "options": {"size": 64}, "verifier": "fails.py:reward"}
    settings = tiny_run(run={"steps": 9}, data={"train": [task], "eval": []}, verifier={"check_gold": False})
    cli.write("c.yaml", settings | {"checkpoint": {"every": 9}})
    result = cli("train", "c.yaml")
    assert result.code == 1
    assert "its commonest error: ConnectionError: the judge is down" in result.err + result.out
    assert "the verifier failed on every completion of 3 steps in a row; the state of step 4 is saved" in result.err
    cli.write("fails.py", "def reward(completions, answer):\n    return [float(completions[0] == answer[0])]\n")
    again = cli("train", "c.yaml", "run.steps=5")
    assert again.code == 0, again.err
    assert "resuming after step 4" in again.err
