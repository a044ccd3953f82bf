"""Several processes do what one does: the same prompts, replay and parameters; stopped, resumed, and when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_process import tiny_run
from safetensors.torch import load_file

RECIPES = ("paced", "grpo", "flowrl")
SCRIPT = """
import sys
from pathlib import Path
import torch
from pacedrl import Trainer
from pacedrl.config import load_config
torch.set_num_threads(1)
for path in sys.argv[1:]:
    Trainer(load_config(Path(path))).train()
"""


def launch(folder: Path, processes: int, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PACEDRL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*start, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def rows(folder: Path, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


def weights(folder: Path, step: int = 6) -> dict[str, Any]:
    return load_file(folder / f"checkpoints/step-{step:05d}/model.safetensors")


def close(one: Path, other: Path, step: int = 6) -> None:
    """Of two runs' weights."""
    theirs = weights(other, step)
    for name, tensor in weights(one, step).items():
        assert float((tensor - theirs[name]).abs().max()) < 2e-5, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recipes, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "train.py").write_text(SCRIPT)
    for count in (1, 2):
        for recipe in RECIPES:
            tree = tiny_run(f"{recipe}-{count}", recipe=recipe, sampling={"prompts_per_step": 3})
            (folder / f"{recipe}-{count}.yaml").write_text(yaml.safe_dump(tree))
    running = [launch(folder, n, "train.py", *(f"{recipe}-{n}.yaml" for recipe in RECIPES)) for n in (1, 2)]
    for process in running:
        finish(process)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_what_one_trains(trained: Path, recipe: str) -> None:
    """Three prompts a step: the shares are not even."""
    one, two = trained / f"{recipe}-1", trained / f"{recipe}-2"
    groups = [[(row["keys"], row["rewards"]) for row in rows(folder, "groups.jsonl")] for folder in (one, two)]
    assert groups[0] == groups[1]
    assert len(groups[0]) == 6
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if not name.startswith("time/") and value is not None:
                assert theirs[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name
    for mine, theirs in zip(rows(one, "eval.jsonl"), rows(two, "eval.jsonl"), strict=True):
        assert theirs == pytest.approx(mine, abs=1e-6)
    close(one, two)
    assert (
        float((weights(one)["model.embed_tokens.weight"] - weights(one, 4)["model.embed_tokens.weight"]).abs().max())
        > 1e-4
    )
    state = {
        n: json.loads((trained / f"{recipe}-{n}/checkpoints/step-00006/state/scheduler.json").read_text())
        for n in (1, 2)
    }
    replayed = [str(state[n]).count("token_ids") for n in (1, 2)]
    assert replayed[0] == replayed[1]
    assert (replayed[0] > 0) == (recipe == "paced")


def test_a_run_goes_on_with_another_number_of_processes_and_bit_for_bit_with_the_same(trained: Path) -> None:
    tree = tiny_run("half", recipe="paced", sampling={"prompts_per_step": 3}, run={"steps": 2})
    (trained / "half.yaml").write_text(yaml.safe_dump(tree))
    command = ("-m", "pacedrl.cli", "train", "half.yaml")
    first = finish(launch(trained, 2, *command))
    assert first.count("Run folder: half") == 1  # one of them speaks
    copies = {}
    for count in (1, 2):
        copies[count] = trained / f"half-{count}"
        subprocess.run(["cp", "-r", trained / "half", copies[count]], check=True)
        overrides = (f"run.dir=half-{count}", "run.steps=6")
        finish(launch(trained, count, *command, *overrides))
    close(copies[1], trained / "paced-1")
    exact, whole = weights(copies[2]), weights(trained / "paced-2")
    assert all(bool((tensor == whole[name]).all()) for name, tensor in exact.items())


def under_way(folder: Path, name: str) -> subprocess.Popen[str]:
    """A long run of two processes that has come to its third step."""
    tree = tiny_run(name, recipe="paced", run={"steps": 400}, eval={"every": 0})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    process = launch(folder, 2, "-m", "pacedrl.cli", "train", f"{name}.yaml")
    log = folder / name / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_interrupted_together_and_resumed(trained: Path) -> None:
    process = under_way(trained, "long")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert "Stopped after step" in out
    saved = sorted((trained / "long/checkpoints").glob("step-*"))[-1]
    assert int(saved.name.removeprefix("step-")) == len(rows(trained / "long"))


def test_when_one_process_is_killed_the_others_end(trained: Path) -> None:
    process = under_way(trained, "killed")
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(ranks) == 2
    started = time.monotonic()
    os.kill(int(ranks[1]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in out
