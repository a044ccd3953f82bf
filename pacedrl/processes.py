"""Processes that end together: with the one that started them, and with everything that they started themselves.

All of it is Linux only; elsewhere these functions do nothing. Imports stay few, because every process of a verifier
keeps this module's memory twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

END_LIMIT_S = 5.0
"""Seconds a guardian tries to end what is left, before it gives up and ends itself."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have this process signalled when ``parent`` ends.

    It needs the kernel's help: a stuck process, for one, does not notice that a pipe or a socket was closed.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before the request
        sys.exit(1)


def guard(parent: int, descriptor: int) -> None:
    """Fork: return in the child, while this process stays behind as its guardian.

    When the child or ``parent`` ends, or the guardian is told to (SIGTERM), the guardian kills the child and all of
    its descendants, those included that have left its session or whose own parents are gone: Linux hands such orphans
    to the guardian. Then it ends as the child did, with the same exit code or by the same signal. ``descriptor`` is the
    child's alone. Must be called before any thread is started.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    die_with(parent, by=signal.SIGTERM)
    guardian = os.getpid()
    child = os.fork()
    if child == 0:
        die_with(guardian)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)
        return
    os.close(descriptor)
    status = _await_end(child)
    _kill_children()
    _end_as(status)


_AWAITED = (signal.SIGCHLD, signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _await_end(child: int) -> int:
    """The child's wait status, or SIGTERM's when that came first. Reaps the orphans that end in the meantime."""
    while signal.sigwait(_AWAITED) != signal.SIGTERM:
        reaped = None
        while reaped != 0:
            reaped, status = os.waitpid(-1, os.WNOHANG)
            if reaped == child:
                return status
    return signal.SIGTERM


def _kill_children() -> None:
    """Kill all children until there are none: the children of each one killed become this process's own."""
    deadline = time.monotonic() + END_LIMIT_S
    while time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # gone already; another user's
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _children() -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                # The command's name stands in parentheses and may hold anything.
                parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
                if int(parent) == os.getpid():
                    yield int(folder.name)


def _end_as(status: int) -> None:
    """End this process as its wait ``status`` says that another one ended."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)
