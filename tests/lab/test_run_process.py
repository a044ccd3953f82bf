"""Processes of runs: output, environment, exit codes, interrupts, and the end of the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from pacedrl.lab.run_process import SERVER_KILLED, interrupt, run_process

WAITS = "import time; print('here', flush=True); time.sleep(60)"


class Runs:
    """Started processes, each with its log in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, ForkServerProcess] = {}

    def start(self, name: str, code: str, **environment: str) -> ForkServerProcess:
        process = self.processes[name] = run_process(exec, (code,), self.folder / name, environment)
        process.start()
        return process

    def log(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def wait_for(self, name: str, text: str) -> None:
        deadline = time.monotonic() + 20
        while text not in self.log(name):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Processes of a separate fork server, which imports nothing."""
    server = forkserver.ForkServer()  # type: ignore[attr-defined]
    server.set_forkserver_preload([])
    monkeypatch.setattr(forkserver, "set_forkserver_preload", lambda modules: None)
    monkeypatch.setattr(forkserver, "ensure_running", server.ensure_running)
    monkeypatch.setattr(forkserver, "connect_to_new_process", server.connect_to_new_process)
    monkeypatch.setenv("COLOUR", "red")
    made = Runs(tmp_path)
    yield made
    for process in made.processes.values():
        process.kill()
        process.join()
    server._stop()


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds. Until somebody waits for it, /proc shows it without a command."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_each_has_its_own_exit_code_output_and_environment(runs: Runs) -> None:
    """Each has its own exit code or signal, output (also of its atexit handlers) and environment."""
    said = "import atexit, os, sys; atexit.register(print, 'ended'); print(os.environ['COLOUR'], os.environ['SIZE'])"
    ends = {said: 0, f"{said}; sys.exit(3)": 3, f"{said}; 1 / 0": 1, "import os; os.kill(os.getpid(), 9)": -9}
    for i, code in enumerate(ends):
        runs.start(str(i), code, SIZE=str(i))
    for process in runs.processes.values():
        process.join()
    assert [process.exitcode for process in runs.processes.values()] == list(ends.values())
    logs = [runs.log(str(i)) for i in range(4)]
    assert logs[:2] == ["red 0\nended\n", "red 1\nended\n"]
    assert "red 2\n" in logs[2]
    assert logs[2].endswith("ZeroDivisionError: division by zero\n")
    assert logs[3] == ""


def test_an_interrupt_reaches_all_processes_even_one_just_started(runs: Runs) -> None:
    processes = [runs.start(name, WAITS) for name in ("early", "late")]
    runs.wait_for("early", "here")
    processes.append(runs.start("last", WAITS))
    interrupt(processes)
    assert not any(Path(f"/proc/{process.pid}").exists() for process in processes)
    assert all("KeyboardInterrupt" in runs.log(name) for name in ("early", "late", "last"))


def test_ctrl_c_in_the_terminal_reaches_no_run(runs: Runs) -> None:
    process = runs.start("log", WAITS)
    runs.wait_for("log", "here")
    assert process.pid is not None
    assert os.getsid(process.pid) == process.pid


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the fork server in /proc")
def test_runs_end_when_their_fork_server_was_killed(runs: Runs) -> None:
    process = runs.start("log", WAITS)
    runs.wait_for("log", "here")
    pid = process.pid
    assert pid is not None
    server = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    process.join()
    assert process.exitcode == SERVER_KILLED
    runs.processes.pop("log").close()
    assert gone(pid)


STARTS_A_SERVER = """
import time
from multiprocessing import forkserver
from pathlib import Path
from pacedrl.lab.run_process import run_process
run_process(exec, ("pass",), Path("log"), {})
print(forkserver._forkserver._forkserver_pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_with_a_comparison_that_is_killed_even_while_it_imports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_A_SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as comparison:
        assert comparison.stdout is not None
        server = int(comparison.stdout.readline())
        while "libtorch" not in Path(f"/proc/{server}/maps").read_text():  # importing torch goes on for seconds
            time.sleep(0.01)
        comparison.kill()
    time.sleep(0.5)
    assert not Path(f"/proc/{server}").exists() or not Path(f"/proc/{server}/cmdline").read_bytes()
