"""Keeping the current policy's weights on every vLLM server, including servers that come back."""

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import torch

from pacedrl.errors import InputError
from pacedrl.policy.sampler import Tick
from pacedrl.policy.vllm.client import Lost, Server, delay
from pacedrl.policy.vllm.worker import TIMEOUT, Weights, describe, open_store, send

LOOK_S = 2.0
"""Time between two checks of a server that has the current weights."""
TICK_S = 0.1
"""Longest time between two calls of ``tick``."""
TRANSFER_S = 1800.0
"""Time limit for a server to receive all weights."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """Weights in host memory, and the version that servers give them."""

    version: str
    weights: Weights


class WeightKeeper:
    """Runs a thread for each server, which sends it the last published weights whenever it has others.

    Args:
        urls: The servers' addresses.
        device: The policy's device, from which the weights are sent.
        tokens: Length of the longest prompt and completion together, which a server must have room for.
        patience_s: How long `publish` waits for the first server.
    """

    def __init__(self, urls: Sequence[str], device: torch.device, tokens: int, patience_s: float) -> None:
        self.urls = list(urls)
        self.device = device
        self.tokens = tokens
        self.patience_s = patience_s
        self._run = uuid4().hex[:8]
        self._published = 0
        self._snapshot = Snapshot("", [])
        self._problems: dict[str, tuple[str, Exception | None]] = {}
        """The outcome of sending each server a version: url → (version, problem or None)."""
        self._closed = False
        self._changed = threading.Condition()
        self._sending = threading.Lock()  # one transfer at a time, because they share the network

    def publish(self, weights: Weights, tick: Tick = lambda: None) -> str:
        """Make these the current weights. Returns their version once every reachable server has them.

        Raises InputError if no server can be reached for ``patience_s`` seconds, or if one has the wrong options.
        """
        with self._changed:
            self._published += 1
            self._snapshot = Snapshot(f"{self._run}-{self._published}", weights)
            self._changed.notify_all()
            if self._published == 1:
                for url in self.urls:
                    threading.Thread(target=self._keep, args=(url,), name=f"weights of {url}", daemon=True).start()
            deadline = time.monotonic() + self.patience_s
            while True:
                outcomes = {
                    url: problem for url, (of, problem) in self._problems.items() if of == self._snapshot.version
                }
                ready = any(problem is None for problem in outcomes.values())
                refused = [problem for problem in outcomes.values() if isinstance(problem, InputError)]
                complete = len(outcomes) == len(self.urls)
                if refused and (self._published == 1 or (complete and not ready)):
                    raise refused[0]
                if complete and ready:
                    return self._snapshot.version
                left = deadline - time.monotonic()
                if left <= 0.0 and not ready:
                    reasons = {url: str(outcomes.get(url, "it has not answered yet")) for url in self.urls}
                    raise InputError(no_usable_server(self.patience_s, reasons), docs="serving")
                tick()
                self._changed.wait(min(left, TICK_S) if left > 0.0 else TICK_S)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _keep(self, url: str) -> None:
        server, failures = Server(url), 0
        while not self._closed:
            snapshot, sent, problem = self._snapshot, False, None
            try:
                sent = self._bring_up_to_date(server, snapshot)
                failures = 0
            except Exception as error:  # after any failure, the server may still get the weights later
                problem, failures = error, failures + 1
            with self._changed:
                self._report(url, snapshot, sent, problem)
                self._changed.wait_for(
                    lambda known=snapshot: self._closed or self._snapshot is not known,  # type: ignore[misc]
                    timeout=delay(failures) if failures else LOOK_S,
                )

    def _report(self, url: str, snapshot: Snapshot, sent: bool, problem: Exception | None) -> None:
        version, before = self._problems.get(url, ("", None))
        self._problems[url] = (snapshot.version, problem)
        self._changed.notify_all()
        again = sent and version == snapshot.version  # it was restarted between two checks
        if problem is not None and before is None:
            log.warning("%s: lost: %s", url, problem)
        elif problem is None and (before is not None or again):
            log.warning("%s: is back, with the current weights", url)

    def _bring_up_to_date(self, server: Server, snapshot: Snapshot) -> bool:
        """Send the server the weights if it has others. Returns whether they were sent."""
        if server.version() == snapshot.version:
            return False
        workers = server.workers()
        require_fit(server, workers, self.tokens)
        with self._sending:
            send_snapshot(server, workers, snapshot, self.device)
        return True


def require_fit(server: Server, workers: Sequence[dict[str, Any]], tokens: int) -> None:
    """Raise InputError for a server that was started with the wrong options."""
    for worker in workers:
        if worker["logprobs_mode"] != "processed_logprobs":
            problem = (
                "would return log-probabilities of another distribution than it samples from: start it with "
                "--logprobs-mode processed_logprobs"
            )
        elif worker["max_model_len"] < tokens:
            problem = (
                f"has room for {worker['max_model_len']} tokens, but a prompt and its completion may have {tokens}: "
                f"start it with --max-model-len {tokens}"
            )
        elif worker["data_parallel_size"] != 1:
            problem = "is data-parallel: start one server per replica and list them all"
        else:
            continue
        raise InputError(f"sampling.servers: {server.url} {problem}", docs="serving")


def send_snapshot(server: Server, workers: Sequence[dict[str, Any]], snapshot: Snapshot, device: torch.device) -> None:
    """Replace the server's weights by the snapshot's and drop what it cached with the old ones. Raises `Lost`."""
    over = device if all(worker["device"] == device.type for worker in workers) else torch.device("cpu")
    server.call("POST", "/pause?mode=abort", timeout_s=TIMEOUT.total_seconds())  # nothing waits for its requests
    store = open_store(server.own_address)
    size = len(workers) + 1
    order = {"host": server.own_address, "port": store.port, "size": size, "device": over.type}
    order["weights"] = describe(snapshot.weights)
    failures: list[str] = []  # strings, because the exceptions would keep the group and its connections alive

    def sending() -> None:
        try:
            send(store, size, over, snapshot.weights)
        except Exception as error:
            failures.append(str(error))

    # A server that cannot join raises in the call below at once; the thread then ends by its time limit.
    thread = threading.Thread(target=sending, name=f"weights to {server.url}", daemon=True)
    thread.start()
    receive = {"method": "pacedrl_receive", "kwargs": {"order": json.dumps(order)}}
    server.call("POST", "/collective_rpc", receive, TRANSFER_S)
    thread.join()
    if failures:
        raise Lost(f"the weights did not arrive: {failures[0]}")
    server.call("POST", "/resume")
    server.call("POST", "/update_weight_version", {"new_version": snapshot.version})  # last, because prompts follow it


def no_usable_server(patience_s: float, reasons: dict[str, str]) -> str:
    """Return one line that says of each server why it cannot be used."""
    said = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    return f"sampling.servers: none could be used for {patience_s:g} s ({said}); start them again and resume the run"
