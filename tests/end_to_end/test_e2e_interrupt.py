"""Ctrl-C: the first saves and exits 130, the second exits at once; nothing is left running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from cli_process import CommandLine, FinishedRun, eventually, tiny_run, workers_of
from crashes import signal_at
from test_e2e_resume import STEPS, assert_same_run

SLEEPER = """
import time
from pathlib import Path

def reward(completions, **_):
    Path("judging").touch()
    time.sleep(5)
    return [1.0]
"""


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        pytest.param(signal_at("pacedrl.rollouts.collect:sample_groups", 6, signal.SIGINT), 5, id="sampling"),
        pytest.param(signal_at("pacedrl.rollouts.collect:Scorer.wait", 6, signal.SIGINT), 5, id="verifying"),
        pytest.param(signal_at("pacedrl.training.learner:Learner._apply", 6, signal.SIGINT), 6, id="updating"),
        pytest.param(signal_at("pacedrl.training.trainer:evaluate", 2, signal.SIGINT), 3, id="evaluating"),
        pytest.param(signal_at("pacedrl.training.trainer:save_checkpoint", 2, signal.SIGINT), 4, id="saving"),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    cli: CommandLine, long_run: FinishedRun, moment: Callable[[], None], saved: int
) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": STEPS}))
    result = cli("train", "c.yaml", patch=moment)
    assert result.code == 130, result.err
    assert "Stopping: saving the state. Ctrl-C again exits at once." in result.err
    assert f"Stopped after step {saved}; the same command resumes it." in result.out
    assert "Traceback" not in result.err
    assert (cli.folder / "run" / "checkpoints" / f"step-{saved:05d}").is_dir()
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    assert f"resuming after step {saved}" in result.err
    assert_same_run(cli.folder / "run", long_run.folder)


def test_interrupted_before_the_first_step(cli: CommandLine, long_run: FinishedRun) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": STEPS}))
    result = cli("train", "c.yaml", patch=signal_at("pacedrl.training.trainer:evaluate", 1, signal.SIGINT))
    assert result.code == 130
    assert cli("train", "c.yaml").code == 0
    assert_same_run(cli.folder / "run", long_run.folder)


def test_interrupted_while_loading(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run())
    moment = signal_at("pacedrl.training.trainer:require_some_gold", 1, signal.SIGINT)
    running = cli.start("train", "c.yaml", patch=moment)
    result = running.wait()
    assert result.code == 130
    assert "Traceback" not in result.err
    assert not (cli.folder / "run").exists()
    assert workers_of(running.pid) == []


def test_the_real_command_saves_the_last_whole_step(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 100_000}, data={"eval": []}))
    metrics = cli.folder / "run" / "metrics.jsonl"
    running = cli.start("train", "c.yaml", real=True)
    assert eventually(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= 3, 60)
    running.interrupt()
    result = running.wait(30)
    assert result.code == 130, result.err
    assert "Stopping" in result.err
    last = cli.rows("run/metrics.jsonl")[-1]["step"]
    assert f"Stopped after step {last}" in result.out
    assert (cli.folder / "run" / "checkpoints" / f"step-{last:05d}").is_dir()
    assert workers_of(running.pid) == []


def test_a_second_interrupt_exits_at_once(cli: CommandLine) -> None:
    cli.write("sleeper.py", SLEEPER)
    task = {"source": "skills", "verifier": "sleeper.py:reward"}
    cli.write("c.yaml", tiny_run(data={"train": [task], "eval": []}, verifier={"workers": 2, "check_gold": False}))
    running = cli.start("train", "c.yaml", "verifier.timeout_s=30")
    assert eventually((cli.folder / "judging").exists)
    workers = workers_of(running.pid)
    assert len(workers) == 2 * 2  # each has a guardian
    running.interrupt()
    assert eventually(lambda: "Stopping" in running.err)
    assert running.alive
    start = time.perf_counter()
    running.interrupt()
    assert running.wait().code == 130
    assert time.perf_counter() - start < 2
    assert eventually(lambda: not workers_of(running.pid), 5), "verifier processes outlived the run"
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in workers)
