"""Sampling completions with vLLM servers, over HTTP: tokens in, tokens out. Servers may be lost and come back.

A server is started by the user (`docs/serving.md`), given the policy's weights by the main process of the run
(`pacedrl.policy.vllm.weights`), and asked for completions by all of them.
"""

from __future__ import annotations

import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from pacedrl.config import SamplingConfig
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings
from pacedrl.policy.vllm.client import Lost, Server, delay
from pacedrl.policy.vllm.sampler import sampling_parameters
from pacedrl.policy.vllm.weights import TICK_S, WeightKeeper, nobody_there
from pacedrl.types import Completion

TRIES = 10
"""Of one prompt. One that fails so often is what makes servers fail."""


class VllmServerSampler:
    """A `Sampler` whose prompts are shared out among vLLM servers, each of which has the weights of the last `sync`.

    A prompt is asked of one server at a time, and of another when that one is lost, so that no group comes twice. A
    completion that was not drawn from the current weights alone is thrown away, and its prompt asked again.

    Log-probabilities are as `pacedrl.policy.vllm.sampler` says. ``ranks`` are the processes that sample with the same
    servers, each its own prompts.

    Raises InputError for servers that were not started as they must be, or when none can be reached.
    """

    def __init__(self, policy: Policy, config: SamplingConfig, ranks: Ranks | None = None) -> None:
        self.policy = policy
        self.config = config
        self.ranks = ranks or Ranks()
        self.version = ""
        self.keeper: WeightKeeper | None = None
        if self.ranks.main:
            tokens = config.max_prompt_tokens + config.max_new_tokens
            self.keeper = WeightKeeper(config.servers, policy.device, tokens, config.server_patience_s)
            weakref.finalize(self, self.keeper.close)
        self.sync(policy)

    @torch.no_grad()
    def sync(self, policy: Policy, tick: Callable[[], None] = lambda: None) -> None:
        """Give all servers these weights. The policy may change after: a copy is kept for servers that come back.

        ``tick`` is called while servers are waited for; what it raises ends the wait.
        """
        # In bfloat16, which vLLM computes in, from a GPU. A policy that is split is gathered by all processes together.
        dtype = torch.bfloat16 if policy.device.type == "cuda" else None
        weights = []
        for name, tensor in policy.weights():
            if self.ranks.main:
                weights.append((name, tensor.to("cpu", dtype, copy=True)))

        def publish() -> str:
            assert self.keeper is not None
            return self.keeper.publish(weights, tick)

        self.version = self.ranks.decide(publish)

    def rest(self) -> None:
        """Nothing: the servers' memory is not this process's."""

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seeds: Sequence[int],
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its G completions) as groups finish. What ``tick`` raises ends sampling.

        ``settings.batch_size`` sequences are decoded at once on each server.

        Raises InputError when there is no server for `SamplingConfig.server_patience_s` seconds.
        """
        ends = self.policy.ends(settings.stop)
        parameters = [sampling_parameters(self.policy, settings, seed) for seed in seeds]
        dispatch = _Dispatch(self.config, self.version, settings, prompt_ids, parameters)
        try:
            for prompt, drawn in dispatch.run(tick):
                group = [ends.completion(ids, logprobs) for ids, logprobs in drawn]
                yield prompt, group * (settings.group_size // len(group))
        finally:
            dispatch.close()


@dataclass
class _Desk:
    """A server in one call of `sample`. None of it is touched by another thread."""

    server: Server
    ready: bool = False
    asked: bool = False
    """Whether it is, at this moment, asked for the version of its weights."""
    busy: int = 0
    """Prompts it is at."""
    failures: int = 0
    lost_since: float | None = None
    retry_at: float = 0.0
    reason: str = "it has not answered"


class _Dispatch:
    """Hands prompts to servers and takes groups from them, all in the thread that runs it; other threads only wait."""

    def __init__(
        self,
        config: SamplingConfig,
        version: str,
        settings: SamplingSettings,
        prompt_ids: Sequence[Sequence[int]],
        parameters: Sequence[dict[str, Any]],
    ) -> None:
        self.config = config
        self.version = version
        self.prompt_ids = prompt_ids
        self.parameters = parameters
        self.at_once = max(1, settings.batch_size // settings.group_size)
        self.desks = [_Desk(Server(url)) for url in config.servers]
        self.waiting = deque(range(len(prompt_ids)))
        self.tries: Counter[int] = Counter()
        self.answers: SimpleQueue[tuple[_Desk, int | None, Any]] = SimpleQueue()
        """(server, prompt or None for its version, what came of it)."""
        self.threads = ThreadPoolExecutor((self.at_once + 1) * len(self.desks), thread_name_prefix="pacedrl-vllm")

    def run(self, tick: Callable[[], None]) -> Iterator[tuple[int, list[tuple[list[int], list[float]]]]]:
        """(prompt, what was drawn) of every prompt, once."""
        left = len(self.prompt_ids)
        while left:
            tick()
            self._look_for_servers()
            self._hand_out()
            try:
                desk, prompt, outcome = self.answers.get(timeout=TICK_S)
            except Empty:
                continue
            if prompt is None:
                desk.asked = False
            else:
                desk.busy -= 1
            # What is refused of one that was started anew is for whoever started it; the run goes on with the others.
            if isinstance(outcome, Lost) or (prompt is None and isinstance(outcome, Exception)):
                self._lose(desk, prompt, str(outcome))
            elif isinstance(outcome, Exception):
                raise outcome
            elif prompt is None:
                desk.ready, desk.lost_since = True, None
            else:
                desk.failures = 0
                left -= 1
                yield prompt, outcome

    def close(self) -> None:
        """Break off what is under way."""
        for desk in self.desks:
            desk.server.abandon()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _look_for_servers(self) -> None:
        now = time.monotonic()
        for desk in self.desks:
            if not (desk.ready or desk.asked) and desk.retry_at <= now:
                desk.asked = True
                self._ask(desk, None, lambda desk=desk: self._require_version(desk.server))  # type: ignore[misc]
        waits = [now - desk.lost_since for desk in self.desks if desk.lost_since is not None]
        if len(waits) == len(self.desks) and min(waits) > self.config.server_patience_s:
            reasons = {desk.server.url: desk.reason for desk in self.desks}
            raise InputError(nobody_there(self.config.server_patience_s, reasons), docs="serving")

    def _require_version(self, server: Server) -> None:
        if server.version() != self.version:
            raise Lost("it has not been given the current weights")

    def _hand_out(self) -> None:
        if any(desk.asked and not desk.failures for desk in self.desks):
            return  # one that was just met may be there: the first prompts are for all
        while self.waiting:
            free = [desk for desk in self.desks if desk.ready and desk.busy < self.at_once]
            if not free:
                return
            desk, prompt = min(free, key=lambda desk: desk.busy), self.waiting.popleft()
            desk.busy += 1
            ids, parameters = self.prompt_ids[prompt], self.parameters[prompt]
            self._ask(desk, prompt, self._request(desk.server, ids, parameters))

    def _request(self, server: Server, ids: Sequence[int], parameters: dict[str, Any]) -> Callable[[], Any]:
        return lambda: server.generate(ids, parameters, self.version, self.config.server_timeout_s)

    def _ask(self, desk: _Desk, prompt: int | None, call: Callable[[], Any]) -> None:
        def answer() -> None:
            try:
                outcome = call()
            except Exception as error:
                outcome = error
            self.answers.put((desk, prompt, outcome))

        self.threads.submit(answer)

    def _lose(self, desk: _Desk, prompt: int | None, reason: str) -> None:
        """Back to the front of the queue with its prompt; the server is looked for again, less and less often."""
        now = time.monotonic()
        if desk.ready or prompt is None:  # else it is known to be lost: this is one of several prompts it was at
            desk.failures += 1
            desk.retry_at = now + delay(desk.failures)
        desk.ready = False
        desk.reason = reason
        desk.lost_since = desk.lost_since or now
        if prompt is not None:
            self.waiting.appendleft(prompt)
            self.tries[prompt] += 1
            if self.tries[prompt] >= TRIES:
                raise InputError(
                    f"sampling.servers: a prompt was asked {TRIES} times in vain, the last time of {desk.server.url}: "
                    f"{reason}",
                    docs="serving",
                )
