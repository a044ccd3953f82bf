"""Processes for the runs of a comparison, forked by multiprocessing's fork server.

The server imports once what every run needs, which would take each run seconds. Threads, a GPU's context and whatever
else a fork cannot share do not exist yet when it forks.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from pacedrl.lab.fork_server import PARENT

SERVER_KILLED = 255
"""multiprocessing's exit code for processes whose fork server was killed."""


def run_process(
    function: Callable[..., int | None], arguments: Sequence[Any], log: Path, environment: Mapping[str, str]
) -> ForkServerProcess:
    """Make a process that calls ``function(*arguments)`` when it is started, and exits with the code that it returns.

    Standard output and error go to ``log``; ``environment`` is added to the fork server's. Ctrl-C in the terminal does
    not reach the process. It is killed when this process ends.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pacedrl.lab.fork_server", "pacedrl.lab.worker"])
    resource_tracker.ensure_running()  # before SIGINT is blocked, because the tracker unblocks it when it starts
    # The server and its forks inherit the mask: a SIGINT that follows a fork at once waits until the fork has its log.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    os.environ[PARENT] = str(os.getpid())
    try:
        forkserver.ensure_running()
    finally:
        del os.environ[PARENT]
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context.Process(target=_run, args=(function, arguments, log, environment))


def interrupt(processes: Iterable[ForkServerProcess]) -> None:
    """Send SIGINT to the processes that were started, and wait until they have ended."""
    started = [(process.pid, process) for process in processes if process.pid is not None]
    for pid, _ in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
    for _, process in started:
        process.join()


def _run(
    function: Callable[..., int | None], arguments: Sequence[Any], log: Path, environment: Mapping[str, str]
) -> None:
    os.setsid()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        sys.exit(function(*arguments))
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
