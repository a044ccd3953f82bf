"""Sampling with vLLM servers over HTTP: token ids in, token ids out. Servers may fail and come back.

The user starts the servers (`docs/serving.md`), rank 0 of the run sends them the policy's weights
(`pacedrl.policy.vllm.weights`), and all ranks send them prompts.
"""

import time
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from pacedrl.config import SamplingConfig
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SampledGroups, Sampler, SamplingSettings, Tick, TokenLists
from pacedrl.policy.vllm.client import Lost, Server, delay
from pacedrl.policy.vllm.sampler import sampling_parameters
from pacedrl.policy.vllm.weights import TICK_S, WeightKeeper, no_usable_server

TRIES = 10
"""Attempts per prompt. A prompt that fails this often is probably the cause of the failures."""


class VllmServerSampler(Sampler):
    """Distributes prompts over vLLM servers, which have the weights of the last `sync`.

    Each prompt is sent to one server at a time, and to another one if that fails, so that no group is returned twice. A
    completion that was not sampled from the current weights alone is discarded, and its prompt sent again.

    Log-probabilities are those of `pacedrl.policy.vllm.sampler`. ``ranks`` are the processes that use the same servers,
    each for its own prompts.

    Raises InputError for servers with the wrong options, or if no server can be reached.
    """

    def __init__(self, policy: Policy, config: SamplingConfig, ranks: Ranks | None = None) -> None:
        self.policy = policy
        self.config = config
        self.ranks = ranks or Ranks()
        self.version = ""
        tokens = config.max_prompt_tokens + config.max_new_tokens
        self.keeper = WeightKeeper(config.servers, policy.device, tokens, config.server_patience_s)
        weakref.finalize(self, self.keeper.close)
        self.sync(policy)

    @torch.no_grad()
    def sync(self, policy: Policy, tick: Tick = lambda: None) -> None:
        """Send these weights to all servers. A copy is kept for servers that come back, so the policy may change.

        ``tick`` is called while servers are waited for; an exception in it ends the wait.
        """
        # A GPU's weights are sent in bfloat16, in which vLLM computes. All ranks gather a sharded policy together.
        dtype = torch.bfloat16 if policy.device.type == "cuda" else None
        own = self.ranks.main
        weights = [(name, tensor.to("cpu", dtype, copy=True)) for name, tensor in policy.weights() if own]
        self.version = self.ranks.run_on_main(lambda: self.keeper.publish(weights, tick))

    def sample(
        self, prompt_ids: TokenLists, settings: SamplingSettings, seeds: Sequence[int], tick: Tick = lambda: None
    ) -> SampledGroups:
        """Sample a group for each prompt.

        Each server decodes up to ``settings.batch_size`` sequences at once.

        Raises InputError if no server can be used for `SamplingConfig.server_patience_s` seconds.
        """
        yield from sample_version(self.policy, self.config, self.version, prompt_ids, settings, seeds, tick)


def sample_version(
    policy: Policy,
    config: SamplingConfig,
    version: str,
    prompt_ids: TokenLists,
    settings: SamplingSettings,
    seeds: Sequence[int],
    tick: Tick = lambda: None,
) -> SampledGroups:
    """Sample as `VllmServerSampler.sample` does, on the servers whose weights have this version; none are sent."""
    ends = policy.ends(settings.stop)
    parameters = [sampling_parameters(policy, settings, seed) for seed in seeds]
    dispatch = _Dispatch(config, version, settings, prompt_ids, parameters)
    try:
        for prompt, drawn in dispatch.run(tick):
            group = [ends.completion(ids, logprobs) for ids, logprobs in drawn]
            yield prompt, group * (settings.group_size // len(group))
    finally:
        dispatch.close()


@dataclass
class _ServerState:
    """State of a server during one call of `sample`. Only the thread of the call uses it."""

    server: Server
    ready: bool = False
    checking: bool = False
    """Whether a call for the version of its weights is in progress."""
    busy: int = 0
    """Number of prompts it is sampling for."""
    failures: int = 0
    lost_since: float | None = None
    retry_at: float = 0.0
    reason: str = "it has not answered yet"


class _Dispatch:
    """Sends prompts to servers and collects their groups in the thread that runs it; other threads only wait."""

    def __init__(
        self,
        config: SamplingConfig,
        version: str,
        settings: SamplingSettings,
        prompt_ids: TokenLists,
        parameters: Sequence[dict[str, Any]],
    ) -> None:
        self.config = config
        self.version = version
        self.prompt_ids = prompt_ids
        self.parameters = parameters
        self.at_once = max(1, settings.batch_size // settings.group_size)
        self.servers = [_ServerState(Server(url)) for url in config.servers]
        self.waiting = deque(range(len(prompt_ids)))
        self.tries: Counter[int] = Counter()
        self.calls: dict[Future[Any], tuple[_ServerState, int | None]] = {}
        """The server of each call in progress, and its prompt, None for a check of the version."""
        self.threads = ThreadPoolExecutor((self.at_once + 1) * len(self.servers), thread_name_prefix="pacedrl-vllm")

    def run(self, tick: Tick) -> Iterator[tuple[int, list[tuple[list[int], list[float]]]]]:
        """Yield (prompt, the token ids and log-probabilities of its completions) once for every prompt."""
        left = len(self.prompt_ids)
        while left:
            tick()
            self._check_servers()
            self._send_prompts()
            if not self.calls:
                time.sleep(TICK_S)
            for call in wait(self.calls, timeout=TICK_S, return_when=FIRST_COMPLETED).done:
                state, prompt = self.calls.pop(call)
                error = call.exception()
                if prompt is None:
                    state.checking = False
                else:
                    state.busy -= 1
                # A restarted server with the wrong options counts as lost, so that the run continues on the others.
                if isinstance(error, Lost) or (prompt is None and error is not None):
                    self._lose(state, prompt, str(error))
                elif error is not None:
                    raise error
                elif prompt is None:
                    state.ready, state.lost_since = True, None
                else:
                    state.failures = 0
                    left -= 1
                    yield prompt, call.result()

    def close(self) -> None:
        """Abort the calls in progress."""
        for state in self.servers:
            state.server.abandon()
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _check_servers(self) -> None:
        now = time.monotonic()
        for state in self.servers:
            if not (state.ready or state.checking) and state.retry_at <= now:
                state.checking = True
                self.calls[self.threads.submit(self._require_version, state.server)] = state, None
        waits = [now - state.lost_since for state in self.servers if state.lost_since is not None]
        if len(waits) == len(self.servers) and min(waits) > self.config.server_patience_s:
            reasons = {state.server.url: state.reason for state in self.servers}
            raise InputError(no_usable_server(self.config.server_patience_s, reasons), docs="serving")

    def _require_version(self, server: Server) -> None:
        if server.version() != self.version:
            raise Lost("it has not received the current weights")

    def _send_prompts(self) -> None:
        if any(state.checking and not state.failures for state in self.servers):
            return  # wait for servers that have not answered yet, so that all get some of the first prompts
        while self.waiting:
            free = [state for state in self.servers if state.ready and state.busy < self.at_once]
            if not free:
                return
            state, prompt = min(free, key=lambda state: state.busy), self.waiting.popleft()
            state.busy += 1
            arguments = self.prompt_ids[prompt], self.parameters[prompt], self.version, self.config.server_timeout_s
            self.calls[self.threads.submit(state.server.generate, *arguments)] = state, prompt

    def _lose(self, state: _ServerState, prompt: int | None, reason: str) -> None:
        """Put the prompt back at the front of the queue, and try the server again after a growing delay."""
        now = time.monotonic()
        if state.ready or prompt is None:  # else the failure is known, and this is another of the server's prompts
            state.failures += 1
            state.retry_at = now + delay(state.failures)
        state.ready = False
        state.reason = reason
        state.lost_since = state.lost_since or now
        if prompt is not None:
            self.waiting.appendleft(prompt)
            self.tries[prompt] += 1
            if self.tries[prompt] >= TRIES:
                raise InputError(
                    f"sampling.servers: a prompt failed {TRIES} times, the last time on {state.server.url}: {reason}",
                    docs="serving",
                )
