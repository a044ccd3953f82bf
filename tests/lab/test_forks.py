"""Processes forked from one that has imported what they need: what they are told, what becomes of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacedrl.lab.forks import Forks

MODULE = """
import sys
from pacedrl.lab.forks import serve

arguments = serve(*map(int, sys.argv[1:]))
if arguments is not None:
    exec(arguments[0])
"""
WAITS = "import time; print('here', flush=True); time.sleep(60)"


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    (tmp_path / "served.py").write_text(MODULE)
    made = Forks("served", os.environ | {"PYTHONPATH": str(tmp_path), "COLOUR": "red"})
    yield made
    made.kill()


def codes(forks: Forks, count: int) -> dict[int, int]:
    found: dict[int, int] = {}
    while len(found) < count:
        found |= forks.ended()
        time.sleep(0.01)
    return found


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds; one that nobody waits for may stay as a name without a command."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_each_ends_as_a_process_of_its_own_would(forks: Forks, tmp_path: Path) -> None:
    """Exit codes and signals, what it says, at its end too, and the environment of each."""
    said = "import atexit, os; atexit.register(print, 'ended'); print(os.environ['COLOUR'], os.environ['SIZE'])"
    ends = {said: 0, f"{said}; sys.exit(3)": 3, f"{said}; 1 / 0": 1, "import os; os.kill(os.getpid(), 9)": -9}
    pids = {
        forks.start((code,), tmp_path / f"{i}.log", {"SIZE": str(i)}): expected
        for i, (code, expected) in enumerate(ends.items())
    }
    assert codes(forks, 4) == pids
    assert forks.ended() == {}
    logs = [(tmp_path / f"{i}.log").read_text() for i in range(4)]
    assert logs[:2] == ["red 0\nended\n", "red 1\nended\n"]
    assert "red 2\n" in logs[2]
    assert "ZeroDivisionError: division by zero\n" in logs[2]
    assert logs[3] == ""


def test_an_interrupt_reaches_all_however_soon(forks: Forks, tmp_path: Path) -> None:
    pids = [forks.start((WAITS,), tmp_path / f"{name}.log", {}) for name in ("early", "late")]
    wait_for(tmp_path / "early.log", "here")
    pids.append(forks.start((WAITS,), tmp_path / "last.log", {}))
    forks.interrupt()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert all("KeyboardInterrupt" in (tmp_path / f"{name}.log").read_text() for name in ("early", "late", "last"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="elsewhere nothing sees to it")
def test_they_end_with_their_server_and_that_is_said(forks: Forks, tmp_path: Path) -> None:
    pid = forks.start((WAITS,), tmp_path / "log", {})
    wait_for(tmp_path / "log", "here")
    server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="exit code -9"):
        forks.ended()
    assert gone(pid)
