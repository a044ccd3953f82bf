"""A verifier process: reads jobs from a socket and answers with one JSON object per line, in ASCII.

Started by ``pacedrl.tasks.pool``. Every message holds the number of its job, and an event: ``ready`` once, before the
first job; for each job ``begin`` when its verifier is imported (the pool's clock starts), ``importing`` and
``imported`` around what the verifier itself imports (the clock stands still), and ``verdict``. The process ends when
the socket does.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.math.values import load_math_verify
from pacedrl.tasks.verifiers import Verdict, Verifier, describe, judge, one_line, resolve
from pacedrl.types import Prompt


def main(descriptor: int, memory_mib: int) -> None:
    """Serve the socket at file ``descriptor`` until it closes.

    A job that runs out of memory gets its verdict, and the process ends, because its state is uncertain from then on.
    """
    pool = _Connection(descriptor)
    memory = _Memory(memory_mib)
    clock = _ImportClock(pool, memory)
    verifiers: dict[tuple[str, str], Verifier] = {}
    pool.tell("ready")
    for job in pool.jobs():
        spec = (job["verifier"], json.dumps(job["options"], sort_keys=True))
        out_of_memory = False
        try:
            if spec not in verifiers:
                memory.lift()
                try:
                    verifiers[spec] = _in_this_process(resolve(job["verifier"], job["options"]))
                    if job["verifier"] == "math":
                        load_math_verify()
                finally:
                    memory.restore()
        except InputError as error:
            verdict = Verdict(None, one_line(str(error)))
        except BaseException as error:  # importing runs anybody's code
            verdict = Verdict(None, describe(error))
        else:
            pool.tell("begin")
            try:
                with clock:
                    verdict = judge(verifiers[spec], Prompt(**job["prompt"]), job["text"])
            except MemoryError:
                out_of_memory = True
                verdict = Verdict(None, f"ran out of memory; the limit is {memory_mib} MiB (verifier.memory_mib)")
        pool.tell("verdict", reward=verdict.reward, error=verdict.error, retiring=out_of_memory)
        if out_of_memory:
            return


class _Connection:
    """The process's end of the connection to the pool. Processes that a verifier forks or starts cannot use it."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._process = os.getpid()
        self._job: int | None = None
        os.register_at_fork(after_in_child=self._leave)

    def jobs(self) -> Iterator[dict[str, Any]]:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                job = json.loads(line)
                self._job = job["job"]
                yield job
                if os.getpid() != self._process:  # a module forked while it was imported
                    os._exit(1)

    def tell(self, event: str, **fields: Any) -> None:
        if os.getpid() == self._process:
            self._socket.sendall(json.dumps({"job": self._job, "event": event, **fields}).encode("ascii") + b"\n")

    def _leave(self) -> None:
        """Replace the socket by the null device in a forked child, so that no other file gets the socket's number."""
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, self._socket.fileno(), inheritable=False)
        os.close(nothing)


def _in_this_process(verifier: Verifier) -> Verifier:
    """Wrap the verifier so that children that it forks end when it returns or raises in them."""
    process = os.getpid()

    def verify(prompt: Prompt, text: str) -> float:
        code = 1
        try:
            reward = verifier(prompt, text)
            code = 0
            return reward
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            raise
        finally:
            if os.getpid() != process:
                os._exit(code)

    return verify


class _ImportClock(MetaPathFinder):
    """Within the context, the pool's clock stands still and memory is not limited while modules load.

    It finds what the other finders find and times their loaders, which covers all kinds of imports and modules.
    """

    def __init__(self, pool: _Connection, memory: _Memory) -> None:
        self._pool = pool
        self._memory = memory
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
                self._pool.tell("importing")
                self._memory.lift()
            self._loading += 1
        try:
            return step(argument)
        finally:
            with self._lock:
                self._loading -= 1
                if self._loading == 0:
                    seconds = time.monotonic() - self._start
                    self._memory.restore()
                    self._pool.tell("imported", seconds=seconds)


class _Memory:
    """A limit on what the process allocates beyond what it holds now and what modules take. Linux only."""

    def __init__(self, mebibytes: int) -> None:
        self._limit = _memory_held() + mebibytes * 2**20
        self._held = 0
        _limit_memory(self._limit)

    def lift(self) -> None:
        """Lift the limit while modules load; ``restore`` adds what they took to it."""
        self._held = _memory_held()
        _limit_memory(None)

    def restore(self) -> None:
        self._limit += _memory_held() - self._held
        _limit_memory(self._limit)


def _limit_memory(limit: int | None) -> None:
    """Limit the address space to ``limit`` bytes, or to as much as the process may have."""
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_AS, (hard if limit is None else min(limit, most), hard))


def _memory_held() -> int:
    """Return the bytes of address space; 0 on other systems than Linux."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
