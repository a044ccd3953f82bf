"""Failing verifiers, truncated completions and losses that are not finite: a run counts them, warns once, and
continues."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import CommandLine, tiny_run, workers_of
from crashes import break_loss, loss_not_finite_in

from pacedrl import Config, Trainer

MOODY = """
import time

def reward(prompts, completions, mood, answer, **_):
    if mood[0] == "raises":
        raise ValueError("in a bad mood")
    if mood[0] == "hangs":
        time.sleep(60)
    if mood[0] == "declines":
        return [None]
    return [float(completions[0] == answer[0])]
"""


def moody_rows(**counts: int) -> str:
    moods = [mood for mood, count in counts.items() for _ in range(count)]
    rows = [{"prompt": f"copy:{10 + i}=", "answer": str(10 + i), "mood": mood} for i, mood in enumerate(moods)]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def moody(cli: CommandLine) -> dict[str, Any]:
    """A run whose verifier misbehaves as each prompt's ``mood`` says; every step samples all prompts."""
    cli.write("moody.py", MOODY)
    task = {"source": "rows.jsonl", "verifier": "moody.py:reward"}
    return tiny_run(
        run={"steps": 3, "samples_per_step": 12},
        data={"train": [task], "eval": []},
        sampling={"prompts_per_step": 12},
        verifier={"workers": 2, "timeout_s": 0.5, "check_gold": False},
    )


def test_verifier_errors_are_counted_and_left_out(cli: CommandLine, moody: dict[str, Any]) -> None:
    cli.write("rows.jsonl", moody_rows(fine=9, raises=1, hangs=1, declines=1))
    cli.write("c.yaml", moody)
    running = cli.start("train", "c.yaml")
    result = running.wait()
    assert result.code == 0, result.err
    rows, samples = cli.rows("run/metrics.jsonl"), cli.rows("run/samples.jsonl")
    for row in rows:
        assert row["verifier/errors"] == 12  # three prompts, four completions each
        groups = [sample for sample in samples if sample["step"] == row["step"]][:12]
        observed = [group["observed_accuracy"] for group in groups if group["observed_accuracy"] is not None]
        assert len(observed) == 9
        assert row["reward/mean"] == pytest.approx(sum(observed) / 9)
        assert row["accuracy/observed_mean"] == pytest.approx(sum(observed) / 9)
    assert rows[0]["rollouts/trained"] == 36
    assert rows[0]["rollouts/generated"] == 48
    failed = {sample["error"] for sample in samples if sample["error"] is not None}
    assert failed == {
        "ValueError: in a bad mood",
        "timed out after 0.5 s",
        "moody.py:reward returned None: it does not apply to this row",
    }
    assert all(sample["reward"] is None for sample in samples if sample["error"] is not None)
    assert result.err.count("the verifier failed on 25% of completions") == 1
    assert "raise verifier.timeout_s" in " ".join(result.err.split())  # wrapped at the width of a terminal
    assert workers_of(running.pid) == []


def test_few_verifier_errors_are_no_alarm(cli: CommandLine, moody: dict[str, Any]) -> None:
    cli.write("rows.jsonl", moody_rows(fine=20, raises=1))
    cli.write("c.yaml", moody)
    result = cli("train", "c.yaml", "sampling.prompts_per_step=21", "run.steps=2")
    assert result.code == 0, result.err
    assert [row["verifier/errors"] for row in cli.rows("run/metrics.jsonl")] == [4, 4]
    assert "the verifier failed" not in result.err


def test_a_verifier_that_always_fails_is_refused_and_not_called_a_loss_that_is_not_finite(
    cli: CommandLine, moody: dict[str, Any]
) -> None:
    cli.write("rows.jsonl", moody_rows(raises=12))
    cli.write("c.yaml", moody)
    result = cli("train", "c.yaml", "run.steps=4")
    assert result.code == 2
    reason = "none of 48 completions could be judged; the verifier's commonest error: ValueError: in a bad mood"
    assert reason in result.err
    assert "not finite" not in result.err
    assert "Traceback" not in result.err
    assert not (cli.folder / "run" / "checkpoints").exists()


def test_alarms_are_said_once_and_name_the_remedy(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 7}, sampling={"max_new_tokens": 1}))
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    truncated = "warning: step 1: 100% of completions were cut at 1 tokens"
    unmixed = "warning: step 5: no group had both right and wrong completions for 5 steps"
    assert result.err.count(truncated) == result.err.count("were cut at") == 1
    assert result.err.count(unmixed) == result.err.count("no group had both") == 1
    assert "raise sampling.max_new_tokens" in result.err
    assert "raise sampling.group_size" in result.err
    assert [row["completion/truncated"] for row in cli.rows("run/metrics.jsonl")] == [1.0] * 7
    again = cli("train", "c.yaml", "run.steps=9")
    assert again.code == 0
    assert "warning" not in again.err


def test_a_healthy_run_raises_no_alarm(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run())
    assert "warning" not in cli("train", "c.yaml").err


def test_a_loss_that_is_not_finite_skips_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    break_loss(frozenset({2}), monkeypatch.setattr)
    trainer = Trainer(Config.model_validate(tiny_run(str(tmp_path / "run"), run={"steps": 4}, data={"eval": []})))
    weights = [[parameter.detach().clone() for parameter in trainer.policy.parameters()]]
    update = trainer.learner.update

    def recorded(*arguments: Any) -> Any:
        result = update(*arguments)
        weights.append([parameter.detach().clone() for parameter in trainer.policy.parameters()])
        return result

    monkeypatch.setattr(trainer.learner, "update", recorded)
    assert trainer.train().step == 4
    changed = [
        any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(weights)
    ]
    assert changed == [True, False, True, True]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in weights[-1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["optim/skipped"] for row in rows] == [0, 1, 0, 0]
    assert [row["optim/skipped_total"] for row in rows] == [0, 1, 1, 1]
    assert rows[1]["loss/objective"] is None
    assert rows[1]["rollouts/trained"] == rows[0]["rollouts/trained"]
    assert rows[1]["loss/partition"] is not None  # what was observed still teaches log Z
    said = " ".join(capsys.readouterr().err.split())  # wrapped at the width of a terminal
    assert said.count("was not finite; the optimiser step was skipped") == 1


def test_three_in_a_row_stop_the_run_with_the_state_saved(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 8}, checkpoint={"every": 100}))
    running = cli.start("train", "c.yaml", patch=loss_not_finite_in(2, 4, 5, 6))
    result = running.wait()
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("pacedrl: the loss was not finite in 3 steps in a row; the state of")
    assert "Traceback" not in result.err
    assert [path.name for path in (cli.folder / "run" / "checkpoints").iterdir()] == ["step-00006"]
    assert [row["optim/skipped"] for row in cli.rows("run/metrics.jsonl")] == [0, 1, 0, 1, 1, 1]
    assert workers_of(running.pid) == []
    assert cli("train", "c.yaml").code == 0  # the saved state is sound
    assert cli.rows("run/metrics.jsonl")[-1]["step"] == 8
