"""Runs verifiers in processes that can be killed: one job at a time in each, with a time limit for every job.

    with VerifierPool(workers=2, timeout_s=10.0) as pool:
        verdicts = pool.score(jobs)

A job that hangs, crashes its process or raises gets an error verdict; it never becomes a reward of zero and never
touches another job. One job is in flight per process: sending it costs far less than judging it, and a job that waits
behind a stuck one would be late.

A message counts only for the job whose number it holds; others are dropped. Anything else comes from a verifier that
wrote to the connection: the job gets an error and its process is replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from pacedrl.processes import END_LIMIT_S
from pacedrl.tasks.verifiers import Verdict
from pacedrl.types import Prompt

CANCEL_LATENCY_S = 0.2
START_LIMIT_S = 120.0
"""Time limit in seconds for each of these: starting a process, importing a verifier, and imports within a job. None of
them counts as judging."""
LONGEST_MESSAGE = 2**20

# Not "-m pacedrl.tasks.worker" with a PYTHONPATH: that would leak into the programs that verifiers start.
_WORKER = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
descriptor, parent, memory_mib = map(int, sys.argv[2:5])
from pacedrl.processes import guard
guard(parent, descriptor)
from pacedrl.tasks.worker import main
main(descriptor, memory_mib)
"""
_NOT_JUDGING = {
    "starting": "it",
    "resolving": "importing the verifier",
    "importing": "importing what the verifier needs",
}
_GARBAGE = "the verifier wrote to the connection of its process, which is the pool's alone"


@dataclass(frozen=True)
class Job:
    """One completion to judge. ``prompt.answer``, ``prompt.columns`` and ``options`` must be JSON values."""

    verifier: str
    prompt: Prompt
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Cancelled(Exception):
    """Raised by a call that `VerifierPool.cancel` ended."""


class VerifierPool(contextlib.AbstractContextManager["VerifierPool"]):
    """Starts ``workers`` processes at the first ``score``; ``timeout_s`` is the wall-clock limit of one job.

    ``memory_mib`` is what a process may allocate beyond what modules take (Linux only). Loading modules counts against
    neither limit. Processes that verifiers start end with the verifier's own, at the latest with the pool (Linux only).
    Any thread may use the pool; calls of ``score`` take turns. Ctrl-C reaches the caller only, never the processes.
    """

    def __init__(self, workers: int, timeout_s: float, memory_mib: int = 2048) -> None:
        if workers < 1 or timeout_s <= 0 or memory_mib < 1:
            raise ValueError(
                f"expected workers >= 1, timeout_s > 0 and memory_mib >= 1, got {workers}, {timeout_s}, {memory_mib}"
            )
        self._size = workers
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        self._cancelled = threading.Event()
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        # Linux kills a worker when the thread that started it ends, so a thread that lasts starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="pacedrl-verifiers")
        self._jobs_numbered = 0
        self._closed = False

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the processes and wait until all are ready. Raises RuntimeError if one cannot start."""
        self._run([], all_ready=True)

    def score(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return one verdict per job, in order. Raises RuntimeError if a process cannot start or the pool is closed."""
        return self._run(jobs, all_ready=False)

    def cancel(self) -> None:
        """End a ``score`` that another thread is running, which then raises Cancelled; do nothing if there is none."""
        if self._lock.locked():
            self._cancelled.set()
            with self._lock:
                self._cancelled.clear()

    def close(self) -> None:
        """Kill the processes; closing twice is fine."""
        with self._lock:
            self._closed = True
            self._discard(self._workers)
            self._starter.shutdown()

    def _run(self, jobs: Sequence[Job], all_ready: bool) -> list[Verdict]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            numbers = range(self._jobs_numbered, self._jobs_numbered + len(jobs))
            self._jobs_numbered = numbers.stop
            waiting = deque(numbers)
            returned: set[int] = set()  # by processes that died before they began with them
            verdicts: dict[int, Verdict] = {}
            try:
                while len(verdicts) < len(jobs) or (all_ready and not self._all_idle()):
                    if self._cancelled.is_set():
                        raise Cancelled
                    self._replace_dead()
                    for worker in self._workers:
                        if worker.idle and waiting:
                            number = waiting.popleft()
                            worker.hand(number, jobs[number - numbers.start])
                    busy = [worker for worker in self._workers if not worker.idle]
                    self._wait(busy)
                    for worker in busy:
                        self._collect(worker, verdicts, waiting, returned)
            except BaseException:  # also Ctrl-C: a job that is being judged now must not answer the next call's jobs
                self._discard([worker for worker in self._workers if not worker.idle])
                raise
            return [verdicts[number] for number in numbers]

    def _all_idle(self) -> bool:
        return len(self._workers) == self._size and all(worker.idle for worker in self._workers)

    def _replace_dead(self) -> None:
        self._discard([worker for worker in self._workers if worker.idle and not worker.alive])
        while len(self._workers) < self._size:
            self._workers.append(self._starter.submit(_Worker, self._memory_mib).result())

    def _discard(self, workers: Sequence[_Worker]) -> None:
        for worker in list(workers):
            worker.kill()
            self._workers.remove(worker)

    def _wait(self, busy: Sequence[_Worker]) -> None:
        """Wait until a worker sends something, can be written to, or runs out of time."""
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.outgoing else 0)
                selector.register(worker.connection, events)
            left = min(worker.deadline for worker in busy) - time.monotonic()
            selector.select(min(max(left, 0.0), CANCEL_LATENCY_S))

    def _collect(self, worker: _Worker, verdicts: dict[int, Verdict], waiting: deque[int], returned: set[int]) -> None:
        number = worker.number
        try:
            verdict = worker.exchange(self._timeout_s)
        except _WorkerLostError as lost:
            self._discard([worker])
            if number is None:
                raise RuntimeError(f"a verifier process did not start: {lost}") from None
            if worker.died_before_job and number not in returned:
                returned.add(number)  # only once: the verifier may kill each process that imports it
                waiting.appendleft(number)
            else:
                verdicts[number] = Verdict(None, str(lost))
            return
        if verdict is not None and number is not None:
            verdicts[number] = verdict
            if worker.retiring:
                self._discard([worker])


class _WorkerLostError(Exception):
    """A process died, wrote garbage or ran out of time; the message says which."""


class _Worker:
    """One process and its socket.

    It is starting, idle, resolving a job's verifier, judging a job, or importing what the verifier needs for that job.
    """

    def __init__(self, memory_mib: int) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.setblocking(False)
        search_path = json.dumps([entry or os.getcwd() for entry in sys.path])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, search_path, str(theirs.fileno()), str(os.getpid()), str(memory_mib)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what verifiers print goes to stderr
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.number: int | None = None
        self.retiring = False
        self.deadline = time.monotonic() + START_LIMIT_S
        self._state: Literal["starting", "idle", "resolving", "judging", "importing"] = "starting"
        self._judging_deadline = 0.0
        self._import_s_left = START_LIMIT_S
        self.outgoing = b""
        self._incoming = b""

    @property
    def idle(self) -> bool:
        return self._state == "idle"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def died_before_job(self) -> bool:
        """Whether a lost process had not begun with the job that it had been handed, so the job is not to blame."""
        return self._state == "resolving" and time.monotonic() < self.deadline

    def hand(self, number: int, job: Job) -> None:
        """Give an idle worker a job, whose messages will hold this number; ``exchange`` sends it."""
        prompt = vars(job.prompt) | {"token_ids": ()}  # which no verifier reads
        message = {"job": number, **vars(job), "options": dict(job.options), "prompt": prompt}
        self.outgoing = json.dumps(message).encode("ascii") + b"\n"  # lone surrogates and newlines survive as escapes
        self.number = number
        self.deadline = time.monotonic() + START_LIMIT_S
        self._import_s_left = START_LIMIT_S
        self._state = "resolving"

    def exchange(self, timeout_s: float) -> Verdict | None:
        """Send and receive what is possible now; return the verdict if it arrived. Raises _WorkerLostError."""
        # Asked first, so that what a process said before it ended can be read below. Whether the socket is open tells
        # less, because a process that the verifier started may hold it.
        alive = self.alive
        open_ = self._transfer()
        while b"\n" in self._incoming:
            line, _, self._incoming = self._incoming.partition(b"\n")
            verdict = self._receive(line, timeout_s)
            if self.idle:
                return verdict
        if len(self._incoming) > LONGEST_MESSAGE:
            raise _WorkerLostError(_GARBAGE)
        if not (alive and open_):
            raise _WorkerLostError(self._ending())
        if time.monotonic() >= self.deadline:
            if self._state == "judging":
                raise _WorkerLostError(f"timed out after {timeout_s:g} s")
            raise _WorkerLostError(f"{_NOT_JUDGING[self._state]} took more than {START_LIMIT_S:g} s")
        return None

    def kill(self) -> None:
        """Kill the process and all that it started, and wait for its end."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):  # on Linux its guardian kills the rest
            self._process.wait(2 * END_LIMIT_S if sys.platform == "linux" else 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()

    def _receive(self, line: bytes, timeout_s: float) -> Verdict | None:
        """Do what a message asks for; return the verdict if it is one. Raises _WorkerLostError for anything else."""
        now = time.monotonic()
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise _WorkerLostError(_GARBAGE) from None
        match message:
            case {
                "job": self.number,
                "event": "verdict",
                "reward": float() | None as reward,
                "error": str() | None as error,
                "retiring": bool(retiring),
            }:
                self._rest()
                self.retiring = retiring
                return Verdict(reward, error)
            case {"job": self.number, "event": "begin"} if self._state == "resolving":
                self._state, self.deadline = "judging", now + timeout_s
            case {"job": self.number, "event": "importing"} if self._state == "judging":
                self._judging_deadline = self.deadline
                self._state, self.deadline = "importing", now + self._import_s_left
            case {"job": self.number, "event": "imported", "seconds": float(seconds)} if self._state == "importing":
                self._state, self.deadline = "judging", self._judging_deadline + seconds
                self._import_s_left -= seconds
            case {"job": self.number, "event": "importing" | "imported"}:
                pass  # from a thread that an earlier job left behind
            case {"job": self.number, "event": "ready"} if self._state == "starting":
                self._rest()
            case {"job": int(number), "event": str()} if number != self.number:
                pass
            case _:
                raise _WorkerLostError(_GARBAGE)
        return None

    def _rest(self) -> None:
        self._state = "idle"
        self.number = None

    def _transfer(self) -> bool:
        """Send and receive bytes; return whether the connection is still open."""
        try:
            if self.outgoing:
                self.outgoing = self.outgoing[self.connection.send(self.outgoing) :]
        except BlockingIOError:
            pass
        except ConnectionError:  # what the worker said before it died can still be read
            self.outgoing = b""
        try:
            received = self.connection.recv(65536)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        self._incoming += received
        return received != b""

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return "the verifier closed the connection of its process"
        if code >= 0:
            return f"the verifier's process exited with code {code}"
        memory = ", out of memory perhaps" if -code == signal.SIGKILL else ""
        return f"the verifier's process was killed by signal {-code} ({signal.strsignal(-code)}{memory})"
