"""Makes processes end together: with the process that started them, and with all that they started themselves.

This works on Linux only; elsewhere the functions do nothing. Imports stay few, because every verifier process keeps
this module in memory twice.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

END_LIMIT_S = 5.0
"""Seconds that a guardian spends on killing what is left before it gives up and ends."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_AWAITED = (signal.SIGCHLD, signal.SIGTERM)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when ``parent`` ends.

    A closed pipe or socket would not do: a stuck process does not notice it.
    """
    if sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it ended before the request
        sys.exit(1)


def guard(parent: int, descriptor: int) -> None:
    """Fork: return in the child, while this process stays behind as its guardian.

    When the child or ``parent`` ends, or at SIGTERM, the guardian kills the child and all of its descendants. These
    include processes that left its session or whose own parents are gone, because Linux hands such orphans to the
    guardian. Then it ends as the child did, with the same exit code or by the same signal. The guardian closes
    ``descriptor``, so that only the child has it. Call this function before any thread is started.
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


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def _await_end(child: int) -> int:
    """Return the child's wait status, or SIGTERM if that comes first. Reaps the orphans that end in the meantime."""
    while signal.sigwait(_AWAITED) != signal.SIGTERM:
        reaped = None
        while reaped != 0:
            reaped, status = os.waitpid(-1, os.WNOHANG)
            if reaped == child:
                return status
    return signal.SIGTERM


def _kill_children() -> None:
    """Kill children until there are none: the children of a killed process become this process's own."""
    deadline = time.monotonic() + END_LIMIT_S
    while time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone already, or another user's
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
                # The fields before the last ")" are the pid and the command's name, which may hold anything.
                parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[1]
                if int(parent) == os.getpid():
                    yield int(folder.name)


def _end_as(status: int) -> None:
    """End this process in the way in which another one ended, according to its wait ``status``."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)
