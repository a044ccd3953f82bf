"""Processes forked from one that has imported what they need, which would take each of them seconds.

`Forks` is the comparison's end, `serve` the other. What a fork cannot share is not there yet when it is made: a server
imports and waits; threads, a GPU's context and whatever else a run needs are its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pacedrl.processes import die_with


class Forks:
    """Forks of ``python -m MODULE PARENT DESCRIPTOR``, which calls `serve` with the two numbers.

    In a session of their own, so that a Ctrl-C reaches none of them. Raises RuntimeError where the server died.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", module, str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def start(self, arguments: Sequence[Any], log: Path, environment: Mapping[str, str]) -> int:
        """The pid of a process in which `serve` returns ``arguments``; what it says goes to ``log``."""
        pid: int = self._ask((arguments, log, environment))
        return pid

    def ended(self) -> dict[int, int]:
        """Exit codes by pid, or minus a signal, of those that ended since the last call."""
        codes: dict[int, int] = self._ask(None)
        return codes

    def interrupt(self) -> None:
        """Send SIGINT to all that are left and wait for them."""
        self._connection.close()
        self._server.wait()

    def kill(self) -> None:
        """End all that are left, on Linux; elsewhere the server alone."""
        self._connection.close()
        self._server.kill()
        self._server.wait()

    def _ask(self, request: Any) -> Any:
        try:
            self._connection.send(request)
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"the server of the runs' processes ended, exit code {self._server.wait()}") from error


def serve(parent: int, descriptor: int) -> Sequence[Any] | None:
    """Fork as the process ``parent`` asks; in a fork, what was asked of it, and None in the server, once all ended.

    Whoever gets that far in a fork has standard output and error in its log, and ends, on Linux, when the server does,
    and so when ``parent`` does.
    """
    die_with(parent)
    # A SIGINT that comes right after a fork waits for it to be ready.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    connection, server, forks = Connection(descriptor), os.getpid(), set[int]()
    try:
        while True:
            request = connection.recv()
            if request is None:
                connection.send(_reap(forks))
                continue
            fork = os.fork()
            if fork == 0:
                break
            forks.add(fork)
            connection.send(fork)
    except (EOFError, ConnectionError):
        for pid in forks:
            os.kill(pid, signal.SIGINT)
        for pid in forks:
            os.waitpid(pid, 0)
        return None
    connection.close()
    arguments, log, environment = request
    _settle(server, log, environment)
    return arguments  # type: ignore[no-any-return]


def _reap(forks: set[int]) -> dict[int, int]:
    """Exit codes of those that ended, which are taken out."""
    codes = {}
    for pid in list(forks):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            forks.remove(pid)
            codes[pid] = os.waitstatus_to_exitcode(status)
    return codes


def _settle(server: int, log: Path, environment: Mapping[str, str]) -> None:
    die_with(server)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
