"""Ctrl-C: the first one stops the run at the next safe point and saves the state; the second exits at once."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from pacedrl.errors import EXIT_INTERRUPTED


class Interrupted(Exception):
    """The run was asked to stop. The current step has changed no state but the leases of its prompts."""


class InterruptGuard:
    """A context in which SIGINT sets a flag that `check` turns into Interrupted; a second SIGINT exits at once.

    In a notebook the second SIGINT raises KeyboardInterrupt, because exiting would end the notebook's kernel.
    Outside the main thread, where Python delivers no signals, the guard does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_sigint)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.requested:
            raise Interrupted

    def _on_sigint(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            if hasattr(builtins, "__IPYTHON__"):
                raise KeyboardInterrupt
            os._exit(EXIT_INTERRUPTED)
        self.requested = True
        sys.stderr.write("\nStopping: saving the state. Ctrl-C again exits at once.\n")
