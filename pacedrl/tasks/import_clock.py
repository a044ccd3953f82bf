"""Noticing that modules are being imported, so that the time it takes is not counted as judging."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportClock(MetaPathFinder):
    """Within the context, calls ``began()`` before a module is loaded and ``ended(seconds)`` afterwards.

    Only for modules that are not loaded yet, and once for those that are loaded by one another's imports. It finds what
    the other finders find, and times the loaders: that covers import statements, importlib and extension modules alike.
    """

    def __init__(self, began: Callable[[], None], ended: Callable[[float], None]) -> None:
        self._began = began
        self._ended = ended
        self._lock = threading.Lock()
        self._loading = 0
        self._start = 0.0

    def __enter__(self) -> None:
        sys.meta_path.insert(0, self)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # the verifier took it out
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                self._time(spec.loader)
                return spec
        return None

    def _time(self, loader: Any) -> None:
        if isinstance(loader, type) or not hasattr(loader, "__dict__"):  # built-in and frozen modules load in no time
            return
        for step in ("create_module", "exec_module"):
            if hasattr(loader, step) and step not in vars(loader):
                setattr(loader, step, partial(self._timed, getattr(loader, step)))

    def _timed(self, step: Callable[[Any], Any], argument: Any) -> Any:
        with self._lock:
            if self._loading == 0:
                self._start = time.monotonic()
                self._began()
            self._loading += 1
        try:
            return step(argument)
        finally:
            with self._lock:
                self._loading -= 1
                if self._loading == 0:
                    self._ended(time.monotonic() - self._start)
