"""Only one process at a time works in a run's folder, however the previous one ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from cli_process import CommandLine, eventually, snapshot, tiny_run, together, workers_of

from pacedrl.training import folder_lock
from pacedrl.training.folder_lock import FolderBusy, lock_folder, unlock_folder

SLOW = """
import os, time

def reward(completions, **_):
    if os.path.exists("fork"):
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)
    time.sleep(0.05)
    return [1.0]
"""


@pytest.fixture
def slow(cli: CommandLine) -> CommandLine:
    """A run whose steps take about a second."""
    cli.write("slow.py", SLOW)
    task = {"source": "skills", "options": {"size": 64}, "verifier": "slow.py:reward"}
    cli.write("c.yaml", tiny_run(run={"steps": 100}, data={"train": [task], "eval": []}, checkpoint={"every": 1}))
    return cli


def test_a_second_process_is_refused_and_harms_nothing(slow: CommandLine) -> None:
    first = slow.start("train", "c.yaml")
    assert eventually(lambda: (slow.folder / "run" / "metrics.jsonl").exists(), 60)
    second = slow("train", "c.yaml")
    assert second.code == 2
    assert len(second.err.splitlines()) == 1, second.err
    assert f"pid {first.pid} on " in second.err
    assert "'run'" in second.err
    assert "run.dir=PATH" in second.err
    assert first.alive
    assert slow("report", "run").code == 0, "looking is allowed"
    first.interrupt()
    assert first.wait().code == 130
    steps = [row["step"] for row in slow.rows("run/metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert slow("train", "c.yaml", f"run.steps={len(steps) + 1}").code == 0


@pytest.mark.parametrize("forks", [False, True], ids=["its verifiers live", "what its verifiers forked lives"])
def test_a_killed_process_leaves_no_lock(slow: CommandLine, forks: bool) -> None:
    if forks:
        slow.write("fork", "")
    first = slow.start("train", "c.yaml")
    assert eventually(lambda: (slow.folder / "run" / "metrics.jsonl").exists(), 60)
    workers = workers_of(first.pid)
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # as stuck as a process can be
    first.kill()
    first.wait()
    again = slow("train", "c.yaml", "run.steps=2")
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert again.code == 0, again.err


def test_processes_of_one_run_share_it(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 1}, eval={"every": 0}))
    results = [running.wait() for running in together(cli, 2, "train", "c.yaml")]
    assert [result.code for result in results] == [0, 0], results[0].err
    assert [row["step"] for row in cli.rows("run/metrics.jsonl")] == [1]


def test_bad_input_leaves_no_folder_and_no_lock(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(data={"train": [{"source": "no.jsonl", "verifier": "exact"}], "eval": []}))
    assert cli("train", "c.yaml").code == 2
    assert not (cli.folder / "run").exists()
    (cli.folder / "run").mkdir()
    (cli.folder / "run" / "mine").write_text("")
    assert cli("train", "c.yaml").code == 2
    assert snapshot(cli.folder / "run") == {"mine": b""}


def test_a_fork_neither_holds_nor_ends_the_lock(tmp_path: Path) -> None:
    assert lock_folder(tmp_path)
    held, wait = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait)
        os.read(held, 1)
        os._exit(0)
    assert lock_folder(tmp_path), "a process may take its own lock again"
    assert _taken_by_another(tmp_path)
    unlock_folder(tmp_path)
    assert not _taken_by_another(tmp_path), "the fork is alive and must not hold it"
    os.close(wait)
    os.waitpid(child, 0)


def _taken_by_another(folder: Path) -> bool:
    """Whether another process finds the folder locked."""
    child = os.fork()
    if child == 0:
        try:
            lock_folder(folder)
        except FolderBusy:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_where_there_are_no_locks_the_run_says_so_and_goes_on(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 1}, eval={"every": 0}))
    result = cli("train", "c.yaml", patch=without_locks)
    assert result.code == 0, result.err
    assert "has no locks" in " ".join(result.err.split())


def without_locks() -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    folder_lock.fcntl.flock = flock  # type: ignore[assignment]
