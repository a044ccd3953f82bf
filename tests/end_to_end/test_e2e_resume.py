"""A run that was cut off and resumed equals one that was not, line by line and bit by bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_process import CommandLine, FinishedRun, eventually, snapshot, tiny_run, workers_of
from crashes import kill_in_the_middle_of_a_row, signal_at

LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "groups.jsonl")
STEPS = 12


def logs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the three logs without the keys that may differ."""
    return {
        name: [
            {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
            for line in (folder / name).read_text(encoding="utf-8").splitlines()
        ]
        for name in LOGS
    }


def last_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def assert_same_run(folder: Path, reference: Path) -> None:
    """Equal logs, and a last checkpoint (weights, optimiser, scheduler, counters) of equal bytes."""
    ours, theirs = logs(folder), logs(reference)
    for name in LOGS:
        assert ours[name] == theirs[name], name
    assert last_checkpoint(folder).name == last_checkpoint(reference).name
    ours_saved, theirs_saved = snapshot(last_checkpoint(folder)), snapshot(last_checkpoint(reference))
    assert ours_saved.keys() == theirs_saved.keys()
    assert [name for name in ours_saved if ours_saved[name] != theirs_saved[name]] == []


def kill_at_random(
    cli: CommandLine, reference: FinishedRun, kills: int, delays: tuple[float, float], real: bool = False
) -> list[int]:
    """SIGKILL runs ``kills`` times, each after a delay drawn uniformly from ``delays``, and resume them.

    Delays of real processes count from their first output; before it, they only import libraries.

    A run that ends before it is killed is compared with the reference, and another one is started. Returns how many
    steps had been logged at each kill.
    """
    rng = random.Random(20)
    landed: list[int] = []
    rounds = 0
    while len(landed) < kills:
        rounds += 1
        name = cli.write("c.yaml", tiny_run(f"run-{rounds}", run={"steps": STEPS}))
        folder = cli.folder / f"run-{rounds}"
        while True:
            running = cli.start("train", name, real=real)
            delay = rng.uniform(*delays)
            if real:
                assert eventually(lambda running=running: bool(running.err) or not running.alive, 60)
            if len(landed) < kills and not eventually(lambda running=running: not running.alive, delay):
                running.kill()
            result = running.wait()
            if result.code == 0:  # ended before it was killed
                break
            assert result.code == -signal.SIGKILL, result.err
            metrics = folder / "metrics.jsonl"
            landed.append(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
        assert_same_run(folder, reference.folder)
    return landed


def test_killed_at_random_moments(cli: CommandLine, long_run: FinishedRun) -> None:
    assert long_run.result.code == 0, long_run.result.err
    landed = kill_at_random(cli, long_run, kills=4, delays=(0, long_run.seconds))
    assert len(landed) == 4


@pytest.mark.slow
def test_killed_at_twenty_random_moments(cli: CommandLine, long_run: FinishedRun) -> None:
    landed = kill_at_random(cli, long_run, kills=20, delays=(0, 1.2 * long_run.seconds))
    print("steps logged at each kill:", landed)
    assert len(set(landed)) > 5, f"too few different moments to mean anything: {landed}"


@pytest.mark.slow
def test_killed_at_random_moments_from_a_fresh_interpreter(cli: CommandLine, long_run: FinishedRun) -> None:
    reference = CommandLine(cli.folder / "reference")
    reference.folder.mkdir()
    reference.write("c.yaml", tiny_run(run={"steps": STEPS}))
    finished = FinishedRun(reference, reference("train", "c.yaml", real=True), 0.0)
    landed = kill_at_random(cli, finished, kills=10, delays=(0, 1.2 * long_run.seconds), real=True)
    print("steps logged at each kill:", landed)
    assert len(set(landed)) > 2, f"too few different moments to mean anything: {landed}"


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param(signal_at("os:mkdir", 2), id="folder just made"),
        pytest.param(kill_in_the_middle_of_a_row("metrics.jsonl", 3), id="half a row of metrics"),
        pytest.param(kill_in_the_middle_of_a_row("eval.jsonl", 2), id="half a row of eval", marks=pytest.mark.slow),
        pytest.param(signal_at("os:fsync", 20), id="second checkpoint half flushed"),
        pytest.param(
            signal_at("pacedrl.training.checkpoint:save_state", 5),
            id="half of the state written",
            marks=pytest.mark.slow,
        ),
        pytest.param(signal_at("os:rename", 3), id="before the rename", marks=pytest.mark.slow),
        pytest.param(signal_at("os:rename", 3, after=True), id="after the rename, old one not removed"),
        pytest.param(signal_at("os:unlink", 5), id="old checkpoint half removed"),
    ],
)
def test_killed_at_an_exact_moment(cli: CommandLine, long_run: FinishedRun, crash: Callable[[], None]) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": STEPS}))
    assert cli("train", "c.yaml", patch=crash).code == -signal.SIGKILL
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    assert_same_run(cli.folder / "run", long_run.folder)
    kept = sorted(path.name for path in (cli.folder / "run" / "checkpoints").iterdir())
    assert kept == ["step-00010", "step-00012"]


@pytest.mark.parametrize("replaced", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_again_while_resuming(cli: CommandLine, long_run: FinishedRun, replaced: int) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": STEPS}))
    assert cli("train", "c.yaml", patch=kill_in_the_middle_of_a_row("metrics.jsonl", 8)).code == -signal.SIGKILL
    assert cli("train", "c.yaml", patch=signal_at("os:replace", replaced)).code == -signal.SIGKILL
    assert cli("train", "c.yaml").code == 0
    assert_same_run(cli.folder / "run", long_run.folder)


def test_verifier_processes_die_with_a_killed_run(cli: CommandLine) -> None:
    cli.write("slow.py", "import time\n\ndef reward(completions, **_):\n    time.sleep(60)\n    return [1.0]\n")
    cli.write("c.yaml", tiny_run(data={"train": [{"source": "skills", "verifier": "slow.py:reward"}], "eval": []}))
    running = cli.start("train", "c.yaml", "verifier.timeout_s=60")
    assert eventually(lambda: bool(workers_of(running.pid)))
    running.kill()
    running.wait()
    assert eventually(lambda: not workers_of(running.pid))


def test_resuming_a_finished_run_changes_nothing(cli: CommandLine, full_run: FinishedRun) -> None:
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    before = snapshot(cli.folder)
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    assert "96 rollouts in 6 steps" in result.out
    assert snapshot(cli.folder) == before


def test_more_steps_continue_a_finished_run(cli: CommandLine, full_run: FinishedRun, long_run: FinishedRun) -> None:
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    result = cli("train", "c.yaml", f"run.steps={STEPS}")
    assert result.code == 0, result.err
    assert "resuming after step 6" in result.err
    assert_same_run(cli.folder / "run", long_run.folder)


@pytest.mark.parametrize(
    "override",
    ["eval.k=[1,2]", "eval.samples=8", "checkpoint.every=3", "verifier.workers=2", "run.samples_per_step=1"],
)
def test_what_does_not_alter_training_may_change(cli: CommandLine, full_run: FinishedRun, override: str) -> None:
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    result = cli("train", "c.yaml", "run.steps=8", override)
    assert result.code == 0, result.err
    assert [row["step"] for row in cli.rows("run/metrics.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("objective.beta=0.1", "objective.beta"),
        ("run.seed=1", "run.seed"),
        ("sampling.group_size=8", "sampling.group_size"),
        ("data.train.options.size=32", "data.train"),
        ("model.lora={r: 4}", "model.lora"),
    ],
)
def test_another_training_setting_is_refused(
    cli: CommandLine, full_run: FinishedRun, override: str, field: str
) -> None:
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    before = snapshot(cli.folder)
    result = cli("train", "c.yaml", override)
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert field in result.err
    assert "run.dir=" in result.err
    assert snapshot(cli.folder) == before


@pytest.fixture
def with_other_model(cli: CommandLine, full_run: FinishedRun) -> CommandLine:
    """A copy of the finished run beside ``other``, a model of the same shape and other weights."""
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    shutil.copytree(full_run.folder / "checkpoints" / "step-00004", cli.folder / "other", ignore=lambda *_: ["state"])
    return cli


def test_a_checkpoint_of_another_model_is_refused(with_other_model: CommandLine) -> None:
    cli = with_other_model
    before = snapshot(cli.folder / "run")
    result = cli("train", "c.yaml", "model.name=other")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert "step-00006" in result.err
    assert "another model" in result.err
    assert "run.dir=" in result.err
    assert snapshot(cli.folder / "run") == before, "a refused command must not write into the run"
    result = cli("train", "c.yaml", "run.steps=8")
    assert result.code == 0, result.err  # the refused attempt did no harm


def test_a_checkpoint_of_another_model_is_refused_though_its_name_is_the_same(with_other_model: CommandLine) -> None:
    cli = with_other_model
    config = cli.folder / "run" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["model"]["name"] = "other"
    config.write_text(yaml.safe_dump(tree))
    result = cli("train", "c.yaml", "model.name=other")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert "another model" in result.err


@pytest.mark.parametrize("content", ["", "hello", "a: [", "run: {steps: 3}\n"])
def test_a_run_folder_whose_config_is_no_config_is_refused(
    cli: CommandLine, full_run: FinishedRun, content: str
) -> None:
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    cli.write("run/config.yaml", content)
    result = cli("train", "c.yaml")
    assert result.code == 2, result.err
    assert len(result.err.splitlines()) == 1, result.err
    assert "run/config.yaml" in result.err


def test_a_dataset_that_lost_rows_is_refused(cli: CommandLine) -> None:
    rows = [{"prompt": f"copy:{i}=", "answer": str(i)} for i in range(10, 30)]
    text = [json.dumps(row) + "\n" for row in rows]
    cli.write("rows.jsonl", "".join(text))
    task = {"source": "rows.jsonl", "verifier": "exact"}
    cli.write("c.yaml", tiny_run(run={"steps": 2}, data={"train": [task], "eval": []}))
    assert cli("train", "c.yaml").code == 0
    cli.write("rows.jsonl", "".join(text[10:]))
    result = cli("train", "c.yaml", "run.steps=4")
    assert result.code == 2
    assert len(result.err.splitlines()) == 1, result.err
    assert "data.train" in result.err
    cli.write("rows.jsonl", "".join(text) + '{"prompt": "copy:99=", "answer": "99"}\n')  # growth is fine
    assert cli("train", "c.yaml", "run.steps=4").code == 0


def test_an_adapter_is_saved_and_resumes(cli: CommandLine) -> None:
    pytest.importorskip("peft")
    name = cli.write("c.yaml", tiny_run(run={"steps": 3}, checkpoint={"every": 1}))
    lora = "model.lora={r: 4}"
    assert cli("train", name, lora, "run.dir=reference").code == 0
    crash = signal_at("pacedrl.training.learner:Learner.update", 3)
    assert cli("train", name, lora, patch=crash).code == -signal.SIGKILL
    result = cli("train", name, lora)
    assert result.code == 0, result.err
    assert "resuming after step 2" in result.err
    assert logs(cli.folder / "run") == logs(cli.folder / "reference")
    ours, theirs = (snapshot(cli.folder / folder / "checkpoints" / "step-00003") for folder in ("run", "reference"))
    assert "adapter_config.json" in ours
    assert "model.safetensors" not in ours
    for file in ("adapter_model.safetensors", "state/optimizer.safetensors", "state/scheduler.safetensors"):
        assert ours[file] == theirs[file], file
    evaluated = cli("eval", "run/checkpoints/step-00003", "--config", name, "--json", "-")
    assert evaluated.code == 0, evaluated.err
    figures = json.loads(evaluated.out)["results"][0]["figures"]
    assert figures["pass@1"]["mean"] == cli.rows("run/eval.jsonl")[-1]["held/pass@1"]
