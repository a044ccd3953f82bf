"""The rollouts of one training step: prompts are selected, their completions sampled and judged, and groups gated."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from pacedrl.config import Config
from pacedrl.config.method import DynamicGateConfig, GateConfig, LiloGateConfig
from pacedrl.distributed.ranks import Ranks
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.interrupt import Interrupted
from pacedrl.method import most_learnable, uninformative
from pacedrl.policy.loading import resolve_device, use_device
from pacedrl.policy.sampler import Sampler, SamplingSettings
from pacedrl.rollouts.engines import training_settings
from pacedrl.rollouts.verdicts import part_prefix
from pacedrl.seeding import derive_seed
from pacedrl.stopwatch import Stopwatch
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.types import Group, Prompt
from pacedrl.view import View

Tick = Callable[[], None]
"""Called once per sampled token; it may raise to stop the sampling."""
Take = Callable[[int], list[str]]
"""Number of prompts → keys of prompts not taken before in this step; fewer if there are no more."""
Rollout = Callable[[list[str]], list[Group]]
"""Keys of prompts → their groups, sampled and judged."""

REASONS = ("all_right", "all_wrong", "all_equal", "unjudged", "less_learnable", "surplus")
"""Why a gate drops a group."""
REFILL_FACTOR = 1.25
"""Number of prompts sampled for each group that an adaptive batch is expected to add."""


@dataclass
class Collected:
    """The groups sampled for one step, in order. All were paid for and count as generated; some may be dropped."""

    sampled: list[Group] = field(default_factory=list)
    batches: int = 0
    """Number of times that the gate had prompts selected and sampled."""
    capped: bool = False
    """Whether the gate gave up with fewer than P groups to train on."""
    policy_step: int = 0
    """Number of training steps done by the policy that sampled the groups."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds per phase: select, generate, verify."""

    @property
    def kept(self) -> list[Group]:
        """The groups that are trained on."""
        return [group for group in self.sampled if group.dropped is None]

    def metrics(self) -> dict[str, float]:
        """``gate/...``: groups kept, groups dropped by reason, batches sampled, and whether the gate was capped."""
        dropped = Counter(group.dropped for group in self.sampled)
        counts = {"gate/kept": dropped[None], "gate/batches": self.batches, "gate/capped": self.capped}
        reasons = {f"gate/dropped_{reason}": float(dropped[reason]) for reason in REASONS}
        return reasons | {name: float(value) for name, value in counts.items()}


def sample_groups(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    seed: Sequence[int | str],
    tick: Tick = lambda: None,
    advance: Callable[[int], None] = lambda completions: None,
    finished: Callable[[Group], None] = lambda group: None,
) -> list[Group]:
    """Sample G completions of each prompt; return the groups in the order of ``prompts``, not judged yet.

    A prompt's seed is derived from ``seed`` and its key. As each group finishes, ``finished`` is called with it and
    ``advance`` with its number of completions.
    """
    ids = [prompt.token_ids for prompt in prompts]
    seeds = [derive_seed(*seed, prompt.key) for prompt in prompts]
    done: dict[int, Group] = {}
    for i, completions in sampler.sample(ids, settings, seeds, tick):
        done[i] = Group(prompts[i], completions)
        finished(done[i])
        advance(len(completions))
    return [done[i] for i in range(len(prompts))]


def score_groups(pool: VerifierPool, groups: Sequence[Group], tasks: Mapping[str, Task]) -> None:
    """Fill in every completion's reward and parts, or its error; ``tasks`` are by name (``Prompt.task``).

    The verdict of the task's own verifier is the ``reward``: accuracy is estimated from it, gates decide by it, and
    evaluation reports it. Parts, each with a verifier and a weight, only shape what the policy is trained on. If a part
    cannot be judged, the completion has an error and no reward, because its total is unknown.
    """
    completions = [(group.prompt, completion) for group in groups for completion in group.completions]
    rows = [
        (completion, part, Job(part.verifier, prompt, completion.text, part.options))
        for prompt, completion in completions
        for part in (tasks[prompt.task].correctness, *tasks[prompt.task].parts)
    ]
    verdicts = pool.score([job for _, _, job in rows])
    for _, completion in completions:
        completion.error = None
        completion.parts = {}
    for (completion, part, _), verdict in zip(rows, verdicts, strict=True):
        if part.weight is None:
            completion.reward, completion.error = verdict.reward, verdict.error
        elif verdict.reward is not None:
            completion.parts[part.name] = part.weight * verdict.reward
        elif completion.error is None:
            completion.reward, completion.error = None, f"{part_prefix(part.name)}{verdict.error}"


def add_overlong_penalty(groups: Sequence[Group], limit: int, buffer: int, penalty: float) -> None:
    """Add DAPO's soft overlong penalty (arXiv 2503.14476, eq. 13) as the part ``overlong``.

    It is 0 for completions of up to ``limit − buffer`` tokens, −penalty for those of ``limit`` tokens, and linear in
    between.
    """
    for group in groups:
        for completion in group.completions:
            excess = len(completion.token_ids) - (limit - buffer)
            completion.parts["overlong"] = -penalty * min(max(excess / buffer, 0.0), 1.0)


class Scorer:
    """Judges groups in the background, while others are still being sampled.

        with Scorer(pool, tasks) as scorer:
            ...                     # scorer.add(group) as each is done
            scorer.wait()

    If the context is left with an exception, groups that are not judged yet are dropped.
    """

    def __init__(self, pool: VerifierPool, tasks: Mapping[str, Task]) -> None:
        self.pool = pool
        self.tasks = tasks
        self._waiting: list[Group] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pacedrl-scorer")
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._waiting.clear()
            self.pool.cancel()
        self._thread.shutdown(cancel_futures=kind is not None)

    def add(self, group: Group) -> None:
        """Judge this group as soon as the pool is free."""
        self._waiting.append(group)
        self._futures.append(self._thread.submit(self._score_waiting))

    def wait(self) -> None:
        """Wait until everything added is judged; raise what judging raised."""
        for future in self._futures:
            future.result()

    def _score_waiting(self) -> None:
        # Everything that has piled up goes to the pool at once; what arrives while the pool works goes with the next
        # call.
        groups, self._waiting = self._waiting, []
        if groups:
            score_groups(self.pool, groups, self.tasks)


@dataclass
class Collector:
    """Selects prompts, samples and judges their completions, as often as the gate wants.

    It works for the current step or, in a background thread, for the next one. ``tasks`` are the training tasks by
    name, ``prompts`` their encoded prompts by key. ``true_accuracies`` computes the true accuracy of all prompts, for
    the estimator ``oracle``. A step's prompts are divided among the ``ranks``.
    """

    config: Config
    scheduler: Scheduler
    sampler: Sampler
    pool: VerifierPool
    tasks: Mapping[str, Task]
    prompts: Mapping[str, Prompt]
    view: View
    true_accuracies: Callable[[], list[float]]
    ranks: Ranks

    def collect(self, step: int, policy_step: int, tick: Tick) -> Collected:
        """Collect the judged groups of ``step``, sampled by the policy of ``policy_step``.

        The prompts stay under lease until the groups are observed.
        """
        clock = Stopwatch()
        left = len(self.prompts)

        def take(count: int) -> list[str]:
            nonlocal left
            with clock.phase("select"):
                # The policy does not change within a step, so the oracle's truth is computed once.
                if self.config.estimator.name == "oracle" and left == len(self.prompts):
                    self.scheduler.set_truth(self.true_accuracies())
                keys = self.scheduler.take(min(count, left))
            left -= len(keys)
            return keys

        def own_rollout(keys: Sequence[str]) -> list[Group]:
            # Groups are judged as they finish, while others are still sampled; "verify" is the time left after that.
            with Scorer(self.pool, self.tasks) as scorer:
                with clock.phase("generate"):
                    groups = self.sample(step, keys, tick, scorer.add)
                with clock.phase("verify"):
                    scorer.wait()
            reward = self.config.reward
            if reward.overlong_buffer:
                limit = self.config.sampling.max_new_tokens
                add_overlong_penalty(groups, limit, reward.overlong_buffer, reward.overlong_penalty)
            return groups

        count = self.config.sampling.prompts_per_step
        collected = collect(self.config.gate, count, take, lambda keys: self.ranks.map(keys, own_rollout))
        self.sampler.rest()
        collected.policy_step, collected.seconds = policy_step, clock.seconds
        return collected

    @contextmanager
    def ahead(self, step: int, policy_step: int) -> Iterator[Callable[[], Collected]]:
        """Collect the groups of ``step`` in a thread; the function yielded waits for them and returns them.

        Leaving the context early abandons them.
        """
        abandoned = threading.Event()

        def tick() -> None:
            if abandoned.is_set():
                raise Interrupted

        device = resolve_device(self.config.run.device)
        with ThreadPoolExecutor(1, "pacedrl-ahead", use_device, (device,)) as thread:
            future = thread.submit(self.collect, step, policy_step, tick)
            try:
                yield future.result
            finally:
                abandoned.set()

    def sample(self, step: int, keys: Sequence[str], tick: Tick, finished: Callable[[Group], None]) -> list[Group]:
        """Sample the groups of these prompts; each is passed to ``finished`` when it is complete."""
        settings = training_settings(self.config)
        prompts = [self.prompts[key] for key in keys]
        self.view.phase("sampling", len(prompts) * settings.group_size)
        seed = (self.config.run.seed, "sample", step)
        return sample_groups(self.sampler, prompts, settings, seed, tick, self.view.advance, finished)


def collect(gate: GateConfig, count: int, take: Take, rollout: Rollout) -> Collected:
    """Sample until the gate has ``count`` groups to train on, or may not sample more."""
    match gate:
        case DynamicGateConfig():
            return _dynamic(gate, count, take, rollout)
        case LiloGateConfig():
            return _lilo(gate, count, take, rollout)
        case _:
            return Collected(rollout(take(count)), batches=1)


def _dynamic(gate: DynamicGateConfig, count: int, take: Take, rollout: Rollout) -> Collected:
    """DAPO's dynamic sampling. Informative groups beyond ``count`` are dropped, as in DAPO."""
    result = Collected()
    kept, size = 0, count
    while kept < count and result.batches < gate.max_batches:
        keys = take(size)
        if not keys:  # every prompt was sampled in this step
            break
        result.batches += 1
        groups = rollout(keys)
        for group in groups:
            group.dropped = uninformative(group.rewards) or ("surplus" if kept == count else None)
            kept += group.dropped is None
        result.sampled += groups
        if gate.adaptive_batch:
            size = expected_to_fill(count - kept, sum(group.dropped is None for group in groups) / len(groups), count)
    result.capped = kept < count
    return result


def expected_to_fill(missing: int, kept_share: float, largest: int) -> int:
    """Return the number of prompts to sample next, at most ``largest``: 1.25·missing/kept_share (GRESO, arXiv
    2506.02177).

    The factor keeps a batch from falling short by a few groups. Departure: the paper's ``largest`` is 1.5 times the
    number of prompts that a step trains on; ours is that number.
    """
    return min(largest, math.ceil(REFILL_FACTOR * missing / kept_share)) if kept_share > 0 else largest


def _lilo(gate: LiloGateConfig, count: int, take: Take, rollout: Rollout) -> Collected:
    """LILO: of an oversampled batch, keep the groups with the largest p(1 − p)."""
    sampled = rollout(take(count * gate.oversample))
    judged = [group for group in sampled if group.rewards]
    kept = most_learnable([group.rewards for group in judged], count)
    for group in sampled:
        group.dropped = "less_learnable" if group.rewards else "unjudged"
    for i in kept:
        judged[i].dropped = None
    return Collected(sampled, batches=1, capped=len(kept) < count)
