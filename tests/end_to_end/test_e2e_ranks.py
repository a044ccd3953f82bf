"""Several processes train as one does (prompts, replay, parameters), also after a stop, a resume or a death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_process import CommandLine, Running, tiny_run, together
from crashes import gradient_not_finite
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pacedrl.recipes import RECIPES

RUNS: dict[str, dict[str, Any]] = {
    "paced": {"recipe": "paced"},
    "grpo": {"recipe": "grpo", "optimizer": {"mini_batches": 2, "gradient_checkpointing": True}},
    "plus": {"recipe": "paced_plus"},
    "greso": {"recipe": "greso"},
    "flowrl": {"recipe": "flowrl", "optimizer": {"tokens_per_micro_batch": 40}},  # not as many passes on each process
    "lora": {"recipe": "paced", "model": {"name": "tiny", "lora": {"r": 4, "target_modules": ["q_proj", "up_proj"]}}},
}
SPLIT: dict[str, Any] = {"scale": {"shard": True}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {"one": (1, {}), "two": (2, {}), "split": (2, SPLIT)}
"""Layout → number of processes and the settings of the layout."""
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
SLOW_VERIFIER = """
import os, time

def reward(completions, **columns):
    time.sleep(0.3 * (os.environ["RANK"] == "1"))
    return [float(len(text) % 2) for text in completions]
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


def finished(*launches: list[Running]) -> str:
    """Wait for the processes that `together` started and return their output."""
    results = [running.wait() for launch in launches for running in launch]
    assert [result.code for result in results] == [0] * len(results), [result.err for result in results]
    return "".join(result.out for result in results)


def rows(folder: Path, log: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log).read_text().splitlines()]


def weights(folder: Path, step: int = 6) -> dict[str, Any]:
    (file,) = (folder / f"checkpoints/step-{step:05d}").glob("*model.safetensors")
    return load_file(file)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference between the weights of two runs."""
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def configured(name: str, **sections: Any) -> str:
    """The configuration of a run of this name with three prompts per step, which two processes cannot share equally."""
    return str(yaml.safe_dump(tiny_run(name, **{"sampling": {"prompts_per_step": 3}} | sections)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in three layouts, one started by torchrun in a script, the others as forks of the command line."""
    folder = tmp_path_factory.mktemp("ranks")
    for layout, (_, scale) in LAYOUTS.items():
        for run, sections in RUNS.items():
            (folder / f"{run}-{layout}.yaml").write_text(configured(f"{run}-{layout}", **sections, **scale))
    (folder / "train.py").write_text(SCRIPT)
    launched = launch(folder, 2, "train.py", *(f"{run}-two.yaml" for run in RUNS))
    cli = CommandLine(folder)
    for run in RUNS:
        finished(*(together(cli, LAYOUTS[layout][0], "train", f"{run}-{layout}.yaml") for layout in ("one", "split")))
    finish(launched)
    return folder


@pytest.mark.parametrize("layout", ["two", "split"])
@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_what_one_trains(trained: Path, run: str, layout: str) -> None:
    one, two = trained / f"{run}-one", trained / f"{run}-{layout}"
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
    assert difference(weights(one), weights(two)) < 2e-5
    assert difference(weights(one), weights(one, 4)) > 1e-4
    states = [json.loads((run / "checkpoints/step-00006/state/scheduler.json").read_text()) for run in (one, two)]
    replayed = [str(state).count("token_ids") for state in states]
    assert replayed[0] == replayed[1]
    assert (replayed[0] > 0) == RECIPES[RUNS[run]["recipe"]].settings["replay"]["enabled"]


def test_a_sharded_policy_is_saved_in_one_piece_and_its_optimiser_in_two(trained: Path) -> None:
    saved = trained / "paced-split/checkpoints/step-00006"
    whole = AutoModelForCausalLM.from_pretrained(saved)
    named = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    assert difference(named, weights(trained / "paced-split")) == 0.0
    assert (saved / "config.json").read_text() == (trained / "paced-one/checkpoints/step-00006/config.json").read_text()
    parts = sorted(path.name for path in (saved / "state").glob("optimizer*.safetensors"))
    assert parts == ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"]
    sizes = [(saved / "state" / part).stat().st_size for part in parts]
    together = (trained / "paced-one/checkpoints/step-00006/state/optimizer.safetensors").stat().st_size
    assert max(sizes) < 0.55 * together


@pytest.mark.parametrize("layout", ["two", "split"])
def test_a_run_goes_on_with_another_number_of_processes_and_bit_for_bit_with_the_same(
    trained: Path, layout: str
) -> None:
    processes, scale = LAYOUTS[layout]
    half = f"half-{layout}"
    (trained / f"{half}.yaml").write_text(configured(half, recipe="paced", run={"steps": 2}, **scale))
    cli = CommandLine(trained)
    first = finished(together(cli, processes, "train", f"{half}.yaml"))
    assert first.count(f"Run folder: {half}") == 1  # only one process prints
    for count in (1, 2):
        subprocess.run(["cp", "-r", trained / half, trained / f"{half}-{count}"], check=True)
        finished(together(cli, count, "train", f"{half}.yaml", f"run.dir={half}-{count}", "run.steps=6"))
    assert difference(weights(trained / f"{half}-1"), weights(trained / "paced-one")) < 2e-5
    assert difference(weights(trained / f"{half}-2"), weights(trained / f"paced-{layout}")) == 0.0


@pytest.mark.slow
def test_an_unsharded_checkpoint_resumes_as_a_sharded_policy(trained: Path) -> None:
    subprocess.run(["cp", "-r", trained / "paced-one", trained / "later"], check=True)
    shutil.rmtree(trained / "later/checkpoints/step-00006")
    finish(launch(trained, 2, "-m", "pacedrl.cli", "train", "paced-one.yaml", "run.dir=later", "scale.shard=true"))
    assert difference(weights(trained / "later"), weights(trained / "paced-one")) < 2e-5
    assert len(list((trained / "later/checkpoints/step-00006/state").glob("optimizer-*.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("scale", [{}, SPLIT], ids=["whole", "split"])
def test_four_processes(trained: Path, scale: dict[str, Any]) -> None:
    """Four train as one does; a run that is killed resumes on one, two and four."""
    name = "four-split" if scale else "four"
    (trained / f"{name}.yaml").write_text(configured(name, recipe="paced", **scale))
    finish(launch(trained, 4, "-m", "pacedrl.cli", "train", f"{name}.yaml"))
    assert difference(weights(trained / name), weights(trained / "paced-one")) < 2e-5
    half = f"{name}-killed"
    process = launch(trained, 4, "-m", "pacedrl.cli", "train", f"{name}.yaml", f"run.dir={half}")
    wait_for_steps(trained / half, 3)
    kill_one(process)
    assert process.wait(60) != 0
    for count in (1, 2, 4):
        again = f"{half}-{count}"
        subprocess.run(["cp", "-r", trained / half, trained / again], check=True)
        finish(launch(trained, count, "-m", "pacedrl.cli", "train", f"{name}.yaml", f"run.dir={again}"))
        gap = difference(weights(trained / again), weights(trained / name))
        assert gap == 0.0 if count == 4 else gap < 2e-5


@pytest.mark.parametrize("scale", [pytest.param({}, marks=pytest.mark.slow), SPLIT], ids=["whole", "split"])
def test_a_gradient_of_nan_on_one_and_verifiers_slow_on_one(tmp_path: Path, scale: dict[str, Any]) -> None:
    (tmp_path / "slow.py").write_text(SLOW_VERIFIER)
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "copy {i}{i + 1} =", "answer": "x"}}\n' for i in range(8))
    )
    task = {"source": "rows.jsonl", "verifier": "slow.py:reward"}
    sections: dict[str, Any] = {"data": {"train": [task], "eval": []}, "verifier": {"check_gold": False}, **scale}
    (tmp_path / "run.yaml").write_text(configured("run", recipe="grpo", run={"steps": 3}, **sections))
    cli = CommandLine(tmp_path)
    finished(together(cli, 2, "train", "run.yaml", patch=gradient_not_finite(rank=1, step=1)))
    assert [row["optim/skipped"] for row in rows(tmp_path / "run")] == [0.0, 1.0, 0.0]
    assert all(bool(tensor.isfinite().all()) for tensor in weights(tmp_path / "run", 3).values())
    assert min(row["time/step"] for row in rows(tmp_path / "run")) > 1.0  # a prompt's four completions, on the other


def under_way(folder: Path, name: str) -> subprocess.Popen[str]:
    """A long run of two processes that has reached its third step."""
    tree = tiny_run(name, recipe="paced", run={"steps": 400}, eval={"every": 0})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    process = launch(folder, 2, "-m", "pacedrl.cli", "train", f"{name}.yaml")
    wait_for_steps(folder / name, 3)
    return process


def wait_for_steps(folder: Path, steps: int) -> None:
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= steps):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def kill_one(process: subprocess.Popen[str]) -> None:
    """Kill the last of the processes that were launched."""
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)


def test_interrupted_together_and_resumed(trained: Path) -> None:
    process = under_way(trained, "long")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert "Stopped after step" in out
    saved = sorted((trained / "long/checkpoints").glob("step-*"))[-1]
    assert int(saved.name.removeprefix("step-")) == len(rows(trained / "long"))


def test_when_one_process_is_killed_the_others_end(trained: Path) -> None:
    process = under_way(trained, "killed")
    started = time.monotonic()
    kill_one(process)
    out, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in out
