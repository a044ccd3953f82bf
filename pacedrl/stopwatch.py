"""Wall-clock time of the phases of a training step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall-clock seconds per phase; a phase may occur several times."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def metrics(self) -> dict[str, float]:
        """``time/PHASE`` for each phase, and ``time/step``, the time since the stopwatch was created."""
        phases = {f"time/{name}": seconds for name, seconds in self.seconds.items()}
        return phases | {"time/step": time.perf_counter() - self.started}
