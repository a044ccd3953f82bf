"""A verifier process: reads jobs from a socket and answers, one JSON object a line, ASCII only.

Started by ``pacedrl.tasks.pool``. Every message holds the number of the job that it is about, and an event: ``ready``
once, before the first job; for each job ``begin`` when its verifier is imported (from then on the pool's clock runs),
``importing`` and ``imported`` around what the verifier itself imports (the clock stands still), and ``verdict``. The
process ends when the socket does.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.import_clock import ImportClock
from pacedrl.tasks.verifiers import Verdict, Verifier, describe, judge, one_line, resolve
from pacedrl.types import Prompt


def main(descriptor: int, memory_mib: int) -> None:
    """Serve the socket at file ``descriptor`` until it closes.

    A job that runs out of memory gets its verdict, and the process ends: who knows what state that left it in.
    """
    pool = _Pool(descriptor)
    memory = _Memory(memory_mib)
    clock = _import_clock(pool, memory)
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


class _Pool:
    """The process's end of the connection. Processes that a verifier forks or starts have no part in it."""

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
        """In a forked child: put nothing in the socket's place, whose number must not be given to another file."""
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, self._socket.fileno(), inheritable=False)
        os.close(nothing)


def _import_clock(pool: _Pool, memory: _Memory) -> ImportClock:
    """While modules load, the pool's clock stands still and memory is not limited."""

    def began() -> None:
        pool.tell("importing")
        memory.lift()

    def ended(seconds: float) -> None:
        memory.restore()
        pool.tell("imported", seconds=seconds)

    return ImportClock(began, ended)


def _in_this_process(verifier: Verifier) -> Verifier:
    """The verifier, in whose forked children nothing goes on when it returns or raises: they end there."""
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


class _Memory:
    """A limit on what the process allocates beyond what it holds now and what modules take. Linux only."""

    def __init__(self, mebibytes: int) -> None:
        self._limit = 0
        self._held = 0
        if sys.platform == "linux":
            self._set(_memory_held() + mebibytes * 2**20)

    def lift(self) -> None:
        """Let modules load; ``restore`` then adds what they took to the limit."""
        if sys.platform == "linux":
            self._held = _memory_held()
            resource.setrlimit(resource.RLIMIT_AS, (_hard_limit(), _hard_limit()))

    def restore(self) -> None:
        if sys.platform == "linux":
            self._set(self._limit + _memory_held() - self._held)

    def _set(self, limit: int) -> None:
        hard = _hard_limit()
        self._limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (self._limit, hard))


def _hard_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_AS)[1]


def _memory_held() -> int:
    """Bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
