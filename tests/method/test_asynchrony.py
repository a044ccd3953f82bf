"""Results that come late, out of order, in parts or never, compared with a reference that sees them all in order."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bandits import Bandit
from hypothesis import given, settings
from hypothesis import strategies as st

from pacedrl.method import ClosedFormPartition, DifficultyScheduler, ReplayBuffer, Rollouts
from pacedrl.method.estimator import DiscountedCounts
from pacedrl.training.state import load_state, save_state

GROUP = 4
BANDIT = Bandit(60, features=4)
SEEDS = st.integers(0, 10_000)


@dataclass
class Part:
    """Completions of one prompt by one policy, which arrive in the step ``due``."""

    key: str
    policy_step: int
    due: int
    rewards: list[float]


@dataclass
class Sampler:
    """Samples batches with delays that depend on its seed and the step alone.

    Its policy is ``lag`` steps older than the step in which a prompt was taken. A group comes in at most ``parts``
    parts, and never with the probability ``lost``.
    """

    seed: int
    lag: int = 0
    parts: int = 1
    lost: float = 0.0
    longest: int = 4
    under_way: list[Part] = field(default_factory=list)

    def start(self, keys: list[str], step: int) -> None:
        rng = np.random.default_rng([self.seed, step, len(self.under_way)])
        for key in keys:
            if rng.random() >= self.lost:
                rewards = rng.integers(0, 2, GROUP).astype(float)
                for rewards_part in np.array_split(rewards, rng.integers(1, self.parts + 1)):
                    due = step + int(rng.integers(0, self.longest + 1))
                    self.under_way.append(Part(key, max(step - self.lag, 0), due, rewards_part.tolist()))

    def arrived(self, step: int) -> list[Part]:
        done = [part for part in self.under_way if part.due <= step]
        self.under_way = [part for part in self.under_way if part.due > step]
        return [done[i] for i in np.random.default_rng([self.seed, step]).permutation(len(done))]


def rollouts(parts: list[Part]) -> Rollouts:
    names = [part.key for part in parts for _ in part.rewards]
    return Rollouts(
        names,
        [reward for part in parts for reward in part.rewards],
        token_ids=[[1]] * len(names),
        logprobs=[[-0.5]] * len(names),
        policy_step_B=[part.policy_step for part in parts for _ in part.rewards],
    )


def one_step(scheduler: DifficultyScheduler, sampler: Sampler, batches: int, size: int = 5) -> list[Part]:
    """Take some batches and observe what has arrived."""
    for _ in range(batches):
        sampler.start(scheduler.take(size), scheduler.step)
    arrived = sampler.arrived(scheduler.step)
    scheduler.observe(rollouts(arrived))
    return arrived


def asynchronous(scheduler: DifficultyScheduler, sampler: Sampler, steps: int = 12) -> list[Part]:
    """Run ``steps`` steps with up to two new batches in each, then wait for what is under way; return what arrived."""
    history = []
    while scheduler.step < steps or sampler.under_way:
        batches = int(np.random.default_rng([sampler.seed, scheduler.step]).integers(0, 3))
        history += one_step(scheduler, sampler, batches if scheduler.step < steps else 0)
    return history


def scheduler_for(**options: Any) -> DifficultyScheduler:
    torch.manual_seed(0)
    settings = {"estimator": "counts", "selection": "noise"} | options
    reads_z = settings["estimator"] == "combined" or "partition" in settings
    return DifficultyScheduler(BANDIT.keys, BANDIT.embeddings() if reads_z else None, **settings)


def in_order(history: list[Part], discount: float) -> DiscountedCounts:
    """Return the counts of a reference that sees each visit whole and all visits in order of their policy."""
    visits: dict[tuple[int, str], list[float]] = defaultdict(list)
    for part in history:
        visits[part.policy_step, part.key] += part.rewards
    counts = DiscountedCounts(len(BANDIT.keys), discount)
    for (step, key), rewards in sorted(visits.items()):
        counts.observe(
            np.array([BANDIT.keys.index(key)]), np.array([sum(rewards)]), np.array([float(len(rewards))]), step
        )
    return counts


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 2), st.integers(1, 4), st.sampled_from([0.0, 0.3]), st.integers(1, 6))
def test_nothing_is_lost_or_counted_twice(seed: int, lag: int, parts: int, lost: float, lease_steps: int) -> None:
    scheduler = scheduler_for(discount=1.0, age_discount=1.0, lease_steps=lease_steps)
    history = asynchronous(scheduler, Sampler(seed, lag, parts, lost))
    expected = in_order(history, discount=1.0)
    assert np.array_equal(scheduler.estimator.counts.right_N, expected.right_N)
    assert np.array_equal(scheduler.estimator.counts.wrong_N, expected.wrong_N)
    assert np.array_equal(scheduler.estimator.counts.newest_N, expected.newest_N)
    newest, visits = dict.fromkeys(BANDIT.keys, -1), dict.fromkeys(BANDIT.keys, 0)
    for part in sorted(history, key=lambda part: (part.due, -part.policy_step)):  # of one call, the newest counts
        visits[part.key] += part.policy_step > newest[part.key]
        newest[part.key] = max(part.policy_step, newest[part.key])
    assert scheduler.last_used_N.clip(-1).tolist() == list(newest.values())
    assert scheduler.visits_N.tolist() == list(visits.values())


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(0, 2), st.sampled_from([0.0, 0.5, 0.9]))
def test_leases_keep_the_visits_of_a_prompt_in_order(seed: int, lag: int, discount: float) -> None:
    """With whole groups, and leases that do not expire, the counts are those of the reference at any discount."""
    scheduler = scheduler_for(discount=discount, age_discount=1.0, lease_steps=100)
    history = asynchronous(scheduler, Sampler(seed, lag, longest=2))
    expected = in_order(history, discount)
    assert scheduler.estimator.counts.right_N == pytest.approx(expected.right_N, abs=1e-12)
    assert scheduler.estimator.counts.wrong_N == pytest.approx(expected.wrong_N, abs=1e-12)
    visits = {(part.key, part.policy_step) for part in history}
    assert scheduler.visits_N.sum() == len(visits)
    assert scheduler.leased() == []


@given(st.permutations([0, 0, 0, 1, 1, 1]), st.sampled_from([0.0, 0.5, 1.0]))
def test_two_visits_in_parts_count_as_in_order(arrivals: list[int], discount: float) -> None:
    parts = {0: iter([(1.0, 2.0), (0.0, 1.0), (2.0, 3.0)]), 1: iter([(1.0, 1.0), (3.0, 4.0), (0.0, 2.0)])}
    counts, row = DiscountedCounts(1, discount), np.array([0])
    for visit in arrivals:
        right, trials = next(parts[visit])
        counts.observe(row, np.array([right]), np.array([trials]), 3 * visit)
    assert (counts.right_N[0], counts.wrong_N[0]) == (3 * discount + 4, 3 * discount + 3)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(0, 2), st.sampled_from([0.8, 0.98, 1.0]))
def test_late_results_weigh_in_a_closed_form_what_they_would_have_weighed_in_time(
    seed: int, lag: int, discount: float
) -> None:
    def partition() -> ClosedFormPartition:
        return ClosedFormPartition(BANDIT.embeddings(), discount=discount, components=4, features=16)

    scheduler = scheduler_for(partition=partition(), age_discount=discount, lease_steps=100)
    scheduler.step = lag
    sampler, history = Sampler(seed, lag), list[Part]()
    for _ in range(12):
        # one prompt that is never taken has results in every step, so that both forget as often
        sampler.under_way.append(Part(BANDIT.keys[0], scheduler.step, scheduler.step, [1.0, 0.0]))
        sampler.start([key for key in scheduler.take(5) if key != BANDIT.keys[0]], scheduler.step)
        arrived = sampler.arrived(scheduler.step)
        scheduler.observe(rollouts(arrived))
        history += arrived
    reference = partition()
    for step in range(scheduler.step):
        seen = [part for part in history if part.policy_step == step]
        rows_B = np.array([BANDIT.keys.index(part.key) for part in seen for _ in part.rewards])
        reward_B = torch.tensor([reward for part in seen for reward in part.rewards])
        reference.fit(rows_B, reward_B, torch.zeros(len(rows_B)))
    fitted = scheduler.partition
    assert isinstance(fitted, ClosedFormPartition)
    for name, expected in reference.sums.items():
        assert torch.allclose(fitted.sums[name], expected, rtol=1e-9, atol=1e-9), name
    assert fitted.accuracy() == pytest.approx(reference.accuracy(), abs=1e-5)
    assert fitted.variance() == pytest.approx(reference.variance(), abs=1e-5)


def test_the_weight_of_old_results_in_the_counts() -> None:
    scheduler = scheduler_for(age_discount=0.5, discount=1.0)
    for _ in range(3):
        scheduler.observe(Rollouts([], []))
    assert scheduler.step == 3
    scheduler.observe(Rollouts(BANDIT.keys[:1] * 4 + BANDIT.keys[1:2] * 2, [1.0] * 6, policy_step_B=[1] * 4 + [3] * 2))
    assert scheduler.estimator.counts.right_N[:2].tolist() == [1.0, 2.0]
    assert scheduler.estimate_strength(BANDIT.keys[:2]).tolist() == [3.0, 4.0]
    for step in (5, 99):
        with pytest.raises(ValueError, match="policy steps must lie between 0 and the present step 4"):
            scheduler.observe(Rollouts(BANDIT.keys[:1], [1.0], policy_step_B=step))
    scheduler.observe(Rollouts(BANDIT.keys[:1] * 2, [1.0, 0.0], policy_step_B=4))
    assert scheduler.last_used_N[:2].tolist() == [4, 3]
    for discount in (0.0, 1.5):
        with pytest.raises(ValueError, match="age_discount must lie in"):
            scheduler_for(age_discount=discount)


def test_a_policy_of_long_ago_breaks_nothing() -> None:
    scheduler = scheduler_for(estimator="combined", age_discount=0.1, prior_strength=None)
    scheduler.step = 100_000
    scheduler.observe(Rollouts(BANDIT.keys[:2], [1.0, 0.0], policy_step_B=0))
    assert np.isfinite(scheduler.accuracy_estimates()).all()


def test_a_prompt_was_solved_if_all_parts_of_its_newest_visit_are_right() -> None:
    scheduler, keys = scheduler_for(), BANDIT.keys[:1]
    solved = []
    for step, reward in ((0, 1.0), (0, 0.0), (0, 1.0), (2, 1.0), (1, 0.0), (2, 1.0), (5, 0.0), (6, 1.0)):
        scheduler.observe(Rollouts(keys, [reward], policy_step_B=min(step, scheduler.step)))
        solved.append(bool(scheduler.solved_N[0]))
    assert solved == [True, False, False, True, True, True, False, True]
    assert scheduler.visits_N[0] == 4


def test_the_age_of_a_replayed_completion_counts_from_its_policy() -> None:
    scheduler = scheduler_for(replay=ReplayBuffer(capacity=8, admit=4, max_age=3))

    def correct(row: int, policy_step: int) -> Rollouts:
        return Rollouts(BANDIT.keys[row : row + 1], [1.0], 0.0, [[1]], [[-1.0]], policy_step_B=policy_step)

    for step in range(5):
        scheduler.observe(correct(0, step))
    assert [entry.step for entry in scheduler.replay()] == [2, 3, 4]
    assert scheduler.observe(correct(1, 3))["replay/admitted"] == 1  # the last one, but not the newest
    assert scheduler.observe(correct(2, 2))["replay/admitted"] == 0  # too old
    assert [(entry.key, entry.step) for entry in scheduler.replay()] == [(BANDIT.keys[0], 4)]


@pytest.mark.parametrize("options", [{"estimator": "combined"}, {"partition": "closed_form", "prior_strength": None}])
@pytest.mark.parametrize("stop", [3, 7])
def test_a_run_with_several_batches_under_way_resumes_bit_for_bit(
    options: dict[str, Any], stop: int, tmp_path: Path
) -> None:
    options = {"estimator": "combined", "selection": "thompson", "candidates": 4, "lease_steps": 3} | options
    whole, again = scheduler_for(**options), scheduler_for(**options)
    sampler = Sampler(7, lag=1, parts=3, lost=0.1)
    for _ in range(stop):
        one_step(whole, sampler, batches=2)
    sampler.start(whole.take(5), whole.step)  # in the middle of a step
    assert len({step for _, step in whole.state_dict()["leases"]}) > 1  # of several batches
    save_state(tmp_path, "scheduler", whole.state_dict())
    again.load_state_dict(load_state(tmp_path, "scheduler"))
    other = Sampler(7, lag=1, parts=3, lost=0.1, under_way=list(sampler.under_way))
    for _ in range(5):
        assert again.leased() == whole.leased()
        assert again.select(5) == whole.select(5)
        assert again.replay() == whole.replay()
        assert one_step(again, other, batches=2) == one_step(whole, sampler, batches=2)
        assert np.array_equal(again.accuracy_estimates(), whole.accuracy_estimates())
    assert np.array_equal(again.visits_N, whole.visits_N)
