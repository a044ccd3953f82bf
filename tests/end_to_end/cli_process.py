"""pacedrl's command line in separate processes, which tests can start, signal, kill and wait for.

There are two ways: `command` starts a fresh interpreter with ``python -m pacedrl.cli``, whose imports take seconds.
`forked` runs the same ``main`` in a real process (with its own pid, file descriptors, signals and exit code) that is
forked from a server with the libraries imported, so that a test can start many.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import yaml

LIMIT_S = 120.0
SERVER_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
"""The libraries read these when they are imported, so they are set for the server and all that it forks."""
Patch = Callable[[], None]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class Running:
    """One process; its output goes to files, so that no pipe fills up."""

    def __init__(self, process: Any, folder: Path, serial: int) -> None:
        self.process = process
        self.pid: int = process.pid
        self._out, self._err = _outputs(folder, serial)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        os.kill(self.pid, signal.SIGINT)

    @property
    def alive(self) -> bool:
        poll = getattr(self.process, "poll", None)
        return bool(poll() is None if poll else self.process.is_alive())

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def wait(self, limit_s: float = LIMIT_S) -> Result:
        """Return the result; negative codes are signals. Kills the process and fails if it takes too long."""
        if isinstance(self.process, subprocess.Popen):
            try:
                code = self.process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            self.process.join(limit_s)
            if self.process.exitcode is None:
                self.kill()
                raise TimeoutError(f"still running after {limit_s} s: {self.err}")
            code = self.process.exitcode
        return Result(code, self._out.read_text(encoding="utf-8"), self.err)


class CommandLine:
    """Starts command lines in ``folder``, with a separate cache in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PACEDRL_CACHE": str(folder / "cache"), "COLUMNS": "200", "TERM": "dumb"}
        self._serial = 0

    def start(self, *arguments: str, real: bool = False, patch: Patch | None = None) -> Running:
        """``patch``, a function at the top level of a module, is called in the forked process before ``main``."""
        self._serial += 1
        out, err = _outputs(self.folder, self._serial)
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in (out, err):
            path.touch()
        process: Any
        if real:
            assert patch is None
            with out.open("wb") as stdout, err.open("wb") as stderr:
                process = subprocess.Popen(
                    [sys.executable, "-m", "pacedrl.cli", *arguments],
                    cwd=self.folder,
                    env=os.environ | SERVER_ENVIRONMENT | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                )
        else:
            process = _server().Process(
                target=_main, args=(arguments, str(self.folder), self.environment, str(out), str(err), patch)
            )
            process.start()
        return Running(process, self.folder, self._serial)

    def __call__(
        self, *arguments: str, real: bool = False, patch: Patch | None = None, limit_s: float = LIMIT_S
    ) -> Result:
        return self.start(*arguments, real=real, patch=patch).wait(limit_s)

    def write(self, name: str, content: Any) -> str:
        """Write a file into the folder, text unchanged and other values as YAML, and return its name."""
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file."""
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]


def together(cli: CommandLine, processes: int, *arguments: str, patch: Patch | None = None) -> list[Running]:
    """Run one command line in several forked processes that find each other as those of torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone = cli.environment
    running = []
    for rank in range(processes):
        own = told | {"RANK": rank, "LOCAL_RANK": rank}
        cli.environment = alone | {name: str(value) for name, value in own.items()}
        running.append(cli.start(*arguments, patch=patch))
    cli.environment = alone
    return running


def tiny_run(run_dir: str = "run", **sections: Any) -> dict[str, Any]:
    """A configuration of six quick steps; ``sections`` replace single settings, or whole sections that are no dict."""
    tree: dict[str, Any] = {
        "run": {"dir": run_dir, "steps": 6, "device": "cpu"},
        "model": {"name": "tiny"},
        "data": {
            "train": [{"source": "skills", "options": {"size": 64}}],
            "eval": [{"source": "skills", "name": "held", "split": "test", "options": {"size": 8}}],
        },
        "sampling": {"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 64, "max_new_tokens": 12},
        "optimizer": {"learning_rate": 2e-4},
        "replay": {"capacity": 8, "admit": 4},
        "verifier": {"workers": 1},
        "eval": {"every": 3, "samples": 4, "k": [1, 4]},
        "checkpoint": {"every": 2, "keep": 2},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return tree


def workers_of(pid: int) -> list[int]:
    """Return the pids of the verifier processes of process ``pid``, and of their guardians, that still exist."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                arguments = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            except OSError:
                continue
            if b"pacedrl.tasks.worker" in b" ".join(arguments[:4]) and arguments[-2] == str(pid).encode():
                found.append(int(folder.name))
    return found


def eventually(condition: Callable[[], bool], limit_s: float = 20.0) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _outputs(folder: Path, serial: int) -> tuple[Path, Path]:
    base = folder.parent / f"{folder.name}-output"
    return base / f"{serial}.out", base / f"{serial}.err"


def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cli_preload"])
    # Python 3.11's fork server ignores sys.path, so the preload is found by PYTHONPATH, which no fork shall see.
    with environment(SERVER_ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parent)}):
        forkserver.ensure_running()
    return context


def _main(
    arguments: tuple[str, ...], folder: str, variables: dict[str, str], out: str, err: str, patch: Patch | None
) -> None:
    os.chdir(folder)
    del os.environ["PYTHONPATH"]
    os.environ.update(variables)
    for path, descriptor in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    if patch is not None:
        patch()
    from pacedrl.cli import main

    sys.exit(main(arguments))


@dataclass(frozen=True)
class FinishedRun:
    """A run that others are compared with; nothing may write to it."""

    cli: CommandLine
    result: Result
    seconds: float

    @property
    def folder(self) -> Path:
        return self.cli.folder / "run"
