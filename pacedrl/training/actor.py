"""Where a step's groups come from: prompts are selected, their completions sampled and judged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pacedrl.config import Config
from pacedrl.distributed.ranks import Ranks
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.policy.sampler import Sampler
from pacedrl.rollouts import sample_groups, training_settings
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import VerifierPool
from pacedrl.tasks.scoring import Scorer, add_overlong_penalty
from pacedrl.training.collect import Collected, collect
from pacedrl.training.interrupt import Interrupted
from pacedrl.training.metrics import Stopwatch
from pacedrl.training.view import View
from pacedrl.types import Group, Prompt

Tick = Callable[[], None]


class Actor:
    """Selects, samples and has judged, as often as the gate wants; for this step or, in the background, the next.

    Args:
        config: the run's.
        scheduler: selects.
        sampler: draws completions.
        pool: judges them.
        tasks: the training tasks.
        prompts, prompt_ids: by key.
        view: shows how far sampling is.
        true_accuracies: of all prompts, for the estimator ``oracle``.
        ranks: the processes among which a step's prompts are shared out.
    """

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        sampler: Sampler,
        pool: VerifierPool,
        tasks: Sequence[Task],
        prompts: Mapping[str, Prompt],
        prompt_ids: Mapping[str, list[int]],
        view: View,
        true_accuracies: Callable[[], list[float]],
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.scheduler = scheduler
        self.sampler = sampler
        self.pool = pool
        self.tasks = {task.name: task for task in tasks}
        self.prompts = prompts
        self.prompt_ids = prompt_ids
        self.view = view
        self.true_accuracies = true_accuracies
        self.ranks = ranks

    def collect(self, step: int, policy_step: int, tick: Tick, taken: Collection[str] = ()) -> Collected:
        """The judged groups of ``step``, sampled by the policy of ``policy_step``.

        None of the prompts ``taken`` is selected, where there are enough others. ``tick`` is called once a token.
        """
        clock = Stopwatch()
        if len(self.prompts) - len(taken) < self._wanted:
            taken = ()

        def select(count: int, exclude: Collection[str]) -> list[str]:
            with clock.phase("select"):
                if self.config.estimator.name == "oracle" and not exclude:  # the policy does not change within a step
                    self.scheduler.set_truth(self.true_accuracies())
                left = len(self.prompts) - len(exclude) - len(taken)
                return self.scheduler.select(min(count, left), [*exclude, *taken])

        def rollout(keys: list[str]) -> list[Group]:
            return self.ranks.share(keys, own_rollout)

        def own_rollout(keys: Sequence[str]) -> list[Group]:
            # Judged as they are done, while others are still being sampled: "verify" is what is left after that.
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

        collected = collect(self.config.gate, self.config.sampling.prompts_per_step, select, rollout)
        self.sampler.rest()
        collected.policy_step, collected.seconds = policy_step, clock.seconds
        return collected

    @contextmanager
    def ahead(self, step: int, policy_step: int, taken: Collection[str]) -> Iterator[Callable[[], Collected]]:
        """Collect the groups of ``step`` in a thread while the context lasts; what is yielded waits for them.

        Leaving the context before that gives them up.
        """
        given_up = threading.Event()

        def tick() -> None:
            if given_up.is_set():
                raise Interrupted

        with ThreadPoolExecutor(1, thread_name_prefix="pacedrl-ahead") as thread:
            future = thread.submit(self.collect, step, policy_step, tick, taken)
            try:
                yield future.result
            finally:
                given_up.set()

    def sample(self, step: int, keys: Sequence[str], tick: Tick, finished: Callable[[Group], None]) -> list[Group]:
        """The groups of the prompts named, each handed to ``finished`` when it is whole."""
        settings = training_settings(self.config)
        prompts = [self.prompts[key] for key in keys]
        self.view.phase("sampling", len(prompts) * settings.group_size)
        seed = (self.config.run.seed, "sample", step)
        return sample_groups(self.sampler, prompts, self.prompt_ids, settings, seed, tick, self.view.advance, finished)

    @property
    def _wanted(self) -> int:
        """Prompts of one selection."""
        return self.config.sampling.prompts_per_step * getattr(self.config.gate, "oversample", 1)
