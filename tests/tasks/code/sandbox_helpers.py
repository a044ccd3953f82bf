"""Tells which sandboxes this machine has, and which processes run in them."""

from pathlib import Path

import pytest

from pacedrl.tasks.code import sandbox

needs_bubblewrap = pytest.mark.skipif(sandbox._why_not() is not None, reason=str(sandbox._why_not()))
both_modes = pytest.mark.parametrize("mode", [pytest.param("bubblewrap", marks=needs_bubblewrap), "rlimits"])


def processes(mark):
    """Return the pids of processes on this machine, also in sandboxes, whose command line contains ``mark``."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found
