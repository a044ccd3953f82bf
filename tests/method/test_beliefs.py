"""Beliefs from a log Z in closed form: a prior of its own strength for each prompt, and joint draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from bandits import Bandit, scheduler_for

from pacedrl.method import AccuracyEstimator, ClosedFormPartition, Rollouts
from pacedrl.method.beliefs import EstimatorName, beta_strength
from pacedrl.method.estimator import STRENGTH_RANGE

PROMPTS = 60


def fitted(name: EstimatorName, prior_strength: float | None = None) -> AccuracyEstimator:
    """An estimator that has seen three groups of each of the first 20 prompts of 60, with discounted counts."""
    bandit = Bandit(PROMPTS)
    partition = ClosedFormPartition(bandit.embeddings(), features=64)
    estimator = AccuracyEstimator(name, PROMPTS, partition, prior_strength, discount=0.6)
    rows = np.arange(20)
    for step in range(3):
        rewards = (np.random.default_rng(5).random((20, 8)) < bandit.accuracy[:20, None]).astype(float)
        estimator.observe(rows, rewards.tolist(), step)
        partition.fit(rows.repeat(8), torch.from_numpy(rewards.ravel()).float(), torch.zeros(160))
    return estimator


def log_z(estimator: AccuracyEstimator) -> ClosedFormPartition:
    assert isinstance(estimator.partition, ClosedFormPartition)
    return estimator.partition


def test_a_beta_distribution_has_the_variance_it_was_given() -> None:
    mean, variance = np.array([0.5, 0.3, 0.05]), np.array([0.02, 0.1, 0.001])
    strength = beta_strength(mean, variance)
    assert mean * (1 - mean) / (strength + 1) == pytest.approx(variance)
    assert beta_strength(np.array([0.5, 0.5]), np.array([0.0, 9.0])).tolist() == [STRENGTH_RANGE[1], STRENGTH_RANGE[0]]


def test_the_prior_of_each_prompt_has_the_variance_of_log_z_and_what_it_cannot_see() -> None:
    estimator = fitted("partition")
    beliefs = estimator.beliefs()
    mean_N = log_z(estimator).accuracy().clip(0.01, 0.99)
    variance_N = log_z(estimator).variance() + log_z(estimator).unseen_variance
    assert beliefs.mean_N == pytest.approx(mean_N)
    inside = (beliefs.strength_N > STRENGTH_RANGE[0]) & (beliefs.strength_N < STRENGTH_RANGE[1])
    assert inside.sum() > 10
    assert (mean_N * (1 - mean_N) / (beliefs.strength_N + 1))[inside] == pytest.approx(variance_N[inside])
    # E[p(1 − p)] = m(1 − m) − Var[p]
    assert beliefs.learnability()[inside] == pytest.approx((mean_N * (1 - mean_N) - variance_N)[inside])


def test_the_combined_posterior_adds_the_prompts_own_results() -> None:
    estimator = fitted("combined")
    prior, posterior = estimator.with_name("partition").beliefs(), estimator.beliefs()
    own_N = estimator.counts.right_N + estimator.counts.wrong_N
    assert posterior.strength_N == pytest.approx(prior.strength_N + own_N)
    expected = (prior.strength_N * prior.mean_N + estimator.counts.right_N) / posterior.strength_N
    assert posterior.mean_N == pytest.approx(expected)
    assert estimator.mean() == pytest.approx(posterior.mean_N)
    assert own_N[20:].sum() == 0
    assert estimator.mean()[20:] == pytest.approx(prior.mean_N[20:])


def test_a_fixed_strength_is_the_same_for_all_prompts() -> None:
    assert fitted("combined", 7.0).beliefs().strength_N[20:] == pytest.approx(np.full(40, 7.0))


@pytest.mark.parametrize("name", ["partition", "counts", "combined"])
def test_beliefs_means_and_draws_of_some_rows_are_those_of_all(name: EstimatorName) -> None:
    estimator, rows = fitted(name), np.array([30, 2, 7])
    assert estimator.mean(rows) == pytest.approx(estimator.mean()[rows], abs=1e-6)
    assert estimator.beliefs(rows).strength_N == pytest.approx(estimator.beliefs().strength_N[rows], rel=1e-3)
    assert estimator.draw(np.random.default_rng(0), rows).shape == (3,)


def test_draws_have_the_mean_and_variance_of_log_z() -> None:
    estimator = fitted("partition")
    rng = np.random.default_rng(0)
    draws = np.stack([estimator.draw(rng) for _ in range(3000)])
    middle = np.abs(log_z(estimator).accuracy() - 0.5) < 0.2  # away from the ends, where draws are clipped
    assert middle.sum() > 10
    assert draws.mean(axis=0)[middle] == pytest.approx(log_z(estimator).accuracy()[middle], abs=0.02)
    assert draws.var(axis=0)[middle] == pytest.approx(log_z(estimator).variance()[middle], rel=0.2, abs=1e-3)


def test_one_draw_moves_equal_prompts_together_except_for_their_own_results() -> None:
    estimator = AccuracyEstimator("combined", 3, ClosedFormPartition(torch.zeros(3, 3)), None, 1.0)
    estimator.observe(np.array([2]), [[1.0] * 4], 0)
    draws = np.stack([estimator.draw(np.random.default_rng(seed)) for seed in range(100)])
    assert draws[:, 0] == pytest.approx(draws[:, 1], abs=1e-6)
    assert draws[:, 0].std() > 0.1
    strength = beta_strength(draws[:, 0], log_z(estimator).unseen_variance)
    assert draws[:, 2] == pytest.approx((strength * draws[:, 0] + 4) / (strength + 4), abs=1e-5)


def test_the_beliefs_of_the_mlp_are_points() -> None:
    scheduler = scheduler_for(Bandit(8))
    assert scheduler.estimator.beliefs().are_points


@pytest.mark.parametrize("selection", ["nearest", "uniform", "thompson", "learnability", "noise"])
def test_candidates_limit_what_a_step_may_select(selection: str) -> None:
    bandit = Bandit(64)
    scheduler = scheduler_for(bandit, partition="closed_form", selection=selection, candidates=2)
    seen = set()
    for _ in range(60):
        chosen = scheduler.select(4)
        assert len(set(chosen)) == 4
        seen |= set(chosen)
        scheduler.observe(bandit.rollouts(chosen))
    assert len(seen) > 40  # half of eight random candidates: even a greedy selector explores


def test_of_the_candidates_the_best_are_selected() -> None:
    bandit = Bandit(64)
    scheduler = scheduler_for(bandit, estimator="oracle", candidates=3)
    scheduler.set_truth(bandit.accuracy)
    ranks = np.argsort(np.argsort(np.abs(bandit.accuracy - 0.5)))
    places = []
    for _ in range(200):
        rows = [scheduler.index[key] for key in scheduler.select(4)]
        places.append(ranks[rows].max())
        scheduler.observe(Rollouts(["prompt-0"], [1.0]))
    # The fourth best of 12 out of 64 is on average the 65·4/13 = 20th best, and 19 counted from 0.
    assert np.mean(places) == pytest.approx(19, abs=2)
    whole = scheduler_for(bandit, estimator="oracle", candidates=16)
    whole.set_truth(bandit.accuracy)
    assert sorted(ranks[[whole.index[key] for key in whole.select(4)]]) == [0, 1, 2, 3]


def test_retained_prompts_are_the_solved_ones_used_longest_ago() -> None:
    bandit = Bandit(16)
    scheduler = scheduler_for(bandit, estimator="none", selection="uniform", retain_fraction=0.5, cooldown_steps=1)
    for solved in (["prompt-3", "prompt-5"], ["prompt-8"], ["prompt-5"]):
        scheduler.observe(Rollouts(solved, [1.0] * len(solved)))
    scheduler.observe(Rollouts(["prompt-9"], [0.5]))
    assert scheduler.select(4)[:2] == ["prompt-3", "prompt-8"]
    assert scheduler.select(6)[:3] == ["prompt-3", "prompt-8", "prompt-5"]
    scheduler.observe(Rollouts(["prompt-3"], [0.0]))
    chosen = scheduler.select(8)
    assert chosen[:2] == ["prompt-8", "prompt-5"]  # fewer are solved than the share asks for
    assert len(set(chosen)) == 8


def test_the_explored_share_is_one_of_the_whole_batch() -> None:
    bandit = Bandit(64)
    scheduler = scheduler_for(bandit, estimator="oracle", retain_fraction=0.5, explore_fraction=0.5)
    scheduler.set_truth(bandit.accuracy)
    solved = bandit.keys[:8]
    hits = np.zeros(64)
    for _ in range(300):
        scheduler.observe(Rollouts(solved, [1.0] * 8))
        chosen = scheduler.select(8)
        assert len(set(chosen)) == 8
        assert len(set(chosen[:4]) & set(solved)) == 4
        hits[[scheduler.index[key] for key in chosen[4:]]] += 1
    # None is left to be nearest to one half: the others are drawn uniformly from the 60 prompts that are not retained.
    assert hits[8:].max() < 4 * 300 * 4 / 60
    assert len(set(scheduler.select(7))) == 7  # both shares round up to four


@pytest.mark.parametrize(("explore", "retain"), [(0.6, 0.5), (-0.1, 0.0), (0.0, 1.5)])
def test_shares_of_a_batch_must_fit_into_it(explore: float, retain: float) -> None:
    with pytest.raises(ValueError, match=f"together at most 1, got {explore} and {retain}"):
        scheduler_for(Bandit(4), explore_fraction=explore, retain_fraction=retain)


@pytest.mark.parametrize("estimator", ["partition", "combined"])
def test_a_scheduler_in_closed_form_resumes_bit_for_bit(estimator: str) -> None:
    bandit = Bandit(48)
    options = {
        "partition": "closed_form", "estimator": estimator, "selection": "thompson", "candidates": 3,
        "prior_strength": None, "retain_fraction": 0.25,
    }  # fmt: skip
    first, second = scheduler_for(bandit, **options), scheduler_for(bandit, **options)
    for _ in range(5):
        first.observe(bandit.rollouts(first.select(8)))
    second.load_state_dict(first.state_dict())
    for _ in range(4):
        chosen = first.select(8)
        assert chosen == second.select(8)
        rollouts = bandit.rollouts(chosen)
        assert first.observe(rollouts) == pytest.approx(second.observe(rollouts), abs=0, nan_ok=True)
    assert np.array_equal(first.accuracy_estimates(), second.accuracy_estimates())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"partition": "linear"}, "partition must be one of mlp, closed_form, got 'linear'"),
        ({"selection": "best"}, "selection must be one of nearest, uniform, .*, got 'best'"),
        ({"estimator": "logz"}, "estimator must be one of partition, counts, .*, got 'logz'"),
        ({"candidates": 0}, "candidates must be a whole number of at least 1, got 0"),
        ({"candidates": 1.5}, "candidates must be a whole number of at least 1, got 1.5"),
        ({"cooldown_steps": -1}, "cooldown_steps must be a whole number of at least 0, got -1"),
        ({"group_size": 0}, "group_size must be a whole number of at least 1, got 0"),
        ({"discount": 2.0}, r"discount must lie in \[0, 1\], got 2.0"),
        ({"prior_strength": -1.0}, "prior_strength must be positive or None, got -1.0"),
        ({"implied_weight": 3.0}, r"implied_weight must lie in \[0, 1\], got 3.0"),
    ],
)
def test_settings_out_of_range_and_unknown_names_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_for(Bandit(4), **setting)
