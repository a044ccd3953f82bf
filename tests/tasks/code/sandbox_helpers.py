"""Tells which sandboxes this machine has, and which processes run in them."""

from pathlib import Path

import pytest

from pacedrl.errors import InputError
from pacedrl.tasks.code import sandbox


def without_bubblewrap():
    try:
        sandbox.check("bubblewrap")
    except InputError as error:
        return str(error)
    return None


needs_bubblewrap = pytest.mark.skipif(without_bubblewrap() is not None, reason=str(without_bubblewrap()))
both_modes = pytest.mark.parametrize("mode", [pytest.param("bubblewrap", marks=needs_bubblewrap), "rlimits"])


def processes(mark):
    """Return the pids of the processes on this machine, inside sandboxes too, whose command line holds ``mark``."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found
