"""Verifiers in processes that can be killed: one job at a time each, every job with its own time limit.

    with VerifierPool(workers=2, timeout_s=10.0) as pool:
        verdicts = pool.score(jobs)

A job that hangs, crashes its process or raises gets an error verdict; it never becomes a reward of zero and never
touches another job. One job is in flight per process: handing one over costs far less than judging it does, and a
job that waits behind a stuck one would be late.
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
from dataclasses import dataclass
from typing import Literal

from pacedrl.tasks.verifiers import Verdict
from pacedrl.types import Group, Prompt

START_LIMIT_S = 120.0
"""Seconds a process may take to start, and a verifier to be imported in it. Neither counts as judging."""

# Not "-m pacedrl.tasks.worker" with a PYTHONPATH: that would leak into the programs that verifiers start.
_WORKER = """
import sys, json
sys.path[:] = json.loads(sys.argv[1])
from pacedrl.tasks.worker import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""


@dataclass(frozen=True)
class Job:
    """One completion to judge. ``prompt.answer`` and ``prompt.columns`` must be JSON values."""

    verifier: str
    prompt: Prompt
    text: str


class VerifierPool:
    """``workers`` processes, started at the first ``score``; ``timeout_s`` is the wall-clock limit of one job.

    Usable from any thread, one ``score`` at a time. Ctrl-C reaches the caller only, never the processes.
    """

    def __init__(self, workers: int, timeout_s: float) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(f"expected workers >= 1 and timeout_s > 0, got {workers} and {timeout_s}")
        self._size = workers
        self._timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        # Linux kills a worker when the thread that started it ends, so one thread that lasts starts them all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="pacedrl-verifiers")
        self._closed = False

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the processes and wait until all are ready. RuntimeError when one cannot start."""
        self._run([], all_ready=True)

    def score(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One verdict a job, in order. RuntimeError when a process cannot start or the pool is closed."""
        return self._run(jobs, all_ready=False)

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
            waiting = deque(range(len(jobs)))
            verdicts: dict[int, Verdict] = {}
            try:
                while len(verdicts) < len(jobs) or (all_ready and not self._all_idle()):
                    self._staff()
                    for worker in self._workers:
                        if worker.idle and waiting:
                            index = waiting.popleft()
                            worker.hand(index, jobs[index])
                    self._await_news()
                    self._collect(verdicts)
            except BaseException:  # Ctrl-C too: what is being judged now must not answer the next call's jobs
                self._discard([worker for worker in self._workers if not worker.idle])
                raise
            return [verdicts[index] for index in range(len(jobs))]

    def _all_idle(self) -> bool:
        return len(self._workers) == self._size and all(worker.idle for worker in self._workers)

    def _staff(self) -> None:
        self._discard([worker for worker in self._workers if worker.idle and not worker.alive])
        while len(self._workers) < self._size:
            self._workers.append(self._starter.submit(_Worker).result())

    def _discard(self, workers: Sequence[_Worker]) -> None:
        for worker in list(workers):
            worker.kill()
            self._workers.remove(worker)

    def _await_news(self) -> None:
        """Return when a worker has something to say, can be written to, or is out of time."""
        busy = [worker for worker in self._workers if not worker.idle]
        if not busy:
            return
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.connection, worker.events)
            selector.select(max(min(worker.deadline for worker in busy) - time.monotonic(), 0.0))

    def _collect(self, verdicts: dict[int, Verdict]) -> None:
        for worker in [worker for worker in self._workers if not worker.idle]:
            index = worker.job
            try:
                verdict = worker.exchange(self._timeout_s)
            except _WorkerLostError as lost:
                self._discard([worker])
                if index is None:
                    raise RuntimeError(f"a verifier process did not start: {lost}") from None
                verdict = Verdict(None, str(lost))
            if verdict is not None and index is not None:
                verdicts[index] = verdict


def score_groups(pool: VerifierPool, groups: Sequence[Group], verifier_of: Mapping[str, str]) -> None:
    """Fill in every completion's reward or error; ``verifier_of`` maps ``Prompt.task`` to a verifier's spec."""
    completions = [(group.prompt, completion) for group in groups for completion in group.completions]
    jobs = [Job(verifier_of[prompt.task], prompt, completion.text) for prompt, completion in completions]
    verdicts = pool.score(jobs)
    for (_, completion), verdict in zip(completions, verdicts, strict=True):
        completion.reward, completion.error = verdict.reward, verdict.error


class _WorkerLostError(Exception):
    """A process died or ran out of time; the message says which."""


class _Worker:
    """One process and its socket: starting, idle, importing a job's verifier or judging a job."""

    def __init__(self) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.setblocking(False)
        search_path = json.dumps([entry or os.getcwd() for entry in sys.path])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _WORKER, search_path, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what verifiers print goes to stderr
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.job: int | None = None
        self.deadline = time.monotonic() + START_LIMIT_S
        self._state: Literal["starting", "idle", "importing", "judging"] = "starting"
        self._outgoing = b""
        self._incoming = b""

    @property
    def idle(self) -> bool:
        return self._state == "idle"

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def events(self) -> int:
        """What to wait for: a large job may take several writes."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def hand(self, index: int, job: Job) -> None:
        """Give an idle worker a job; ``exchange`` sends it."""
        # ASCII with escapes: lone surrogates, null bytes and newlines survive
        message = {"verifier": job.verifier, "prompt": vars(job.prompt), "text": job.text}
        self._outgoing = json.dumps(message).encode("ascii") + b"\n"
        self.job = index
        self.deadline = time.monotonic() + START_LIMIT_S
        self._state = "importing"

    def exchange(self, timeout_s: float) -> Verdict | None:
        """Send and receive what is possible now; the verdict when it arrived. Raises _WorkerLostError."""
        open_ = self._transfer()
        *lines, self._incoming = self._incoming.split(b"\n")
        for message in map(json.loads, lines):
            if message == "begin":
                self._state = "judging"
                self.deadline = time.monotonic() + timeout_s
                continue
            self._state = "idle"
            self.job = None
            return None if message == "ready" else Verdict(**message)
        if not open_:
            raise _WorkerLostError(self._ending())
        if time.monotonic() >= self.deadline:
            limits = {
                "starting": f"it took more than {START_LIMIT_S:g} s",
                "importing": f"importing the verifier took more than {START_LIMIT_S:g} s",
            }
            raise _WorkerLostError(limits.get(self._state, f"timed out after {timeout_s:g} s"))
        return None

    def kill(self) -> None:
        """Kill the process and all that it started, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()  # its group is gone when it ended by itself; waiting for it must end all the same
        self._process.wait()
        self.connection.close()

    def _transfer(self) -> bool:
        """Whether the connection is still open."""
        try:
            if self._outgoing:
                self._outgoing = self._outgoing[self.connection.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except ConnectionError:  # what the worker said before it died is still to be read
            self._outgoing = b""
        try:
            while received := self.connection.recv(65536):
                self._incoming += received
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        return False

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "the verifier closed the connection of its process"
        if code >= 0:
            return f"the verifier's process exited with code {code}"
        memory = ", out of memory perhaps" if -code == signal.SIGKILL else ""
        return f"the verifier's process was killed by signal {-code} ({signal.strsignal(-code)}{memory})"
