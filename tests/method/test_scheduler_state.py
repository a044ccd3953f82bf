"""The scheduler's saved state, and what it says about all of its estimates: their histogram and their age."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bandits import BETA, Bandit, scheduler_for

from pacedrl.method import DifficultyScheduler, ReplayBuffer, Rollouts


def test_state_resumes_bit_for_bit_under_reordering_and_growth() -> None:
    bandit = Bandit(48)
    first = scheduler_for(bandit, cooldown_steps=2, replay=ReplayBuffer(32, 16))
    for _ in range(5):
        first.observe(bandit.rollouts(first.select(8)))
    order = np.random.default_rng(5).permutation(48)
    keys = [bandit.keys[i] for i in order] + ["new"]
    embeddings = torch.cat([bandit.embeddings()[order], torch.zeros(1, 8)])
    second = DifficultyScheduler(keys, embeddings, beta=BETA, cooldown_steps=2, replay=ReplayBuffer(32, 16))
    second.load_state_dict(first.state_dict())
    same = scheduler_for(bandit, cooldown_steps=2, replay=ReplayBuffer(32, 16))
    same.load_state_dict(first.state_dict())
    assert np.allclose(first.accuracy_estimate(bandit.keys), second.accuracy_estimate(bandit.keys), atol=1e-6)
    assert second.replay() == first.replay()
    assert second.last_used_N[-1] < 0
    for _ in range(3):
        chosen = first.select(8)
        assert chosen == same.select(8)
        rollouts = bandit.rollouts(chosen)
        assert first.observe(rollouts) == pytest.approx(same.observe(rollouts), abs=0, nan_ok=True)
    assert np.array_equal(first.accuracy_estimates(), same.accuracy_estimates())


def test_a_state_of_other_prompts_is_refused() -> None:
    first, second = scheduler_for(Bandit(8)), scheduler_for(Bandit(4))
    with pytest.raises(ValueError, match="4 prompts that are not in the dataset"):
        second.load_state_dict(first.state_dict())


def test_counts_visits_and_strength_survive_a_round_trip_onto_a_larger_dataset() -> None:
    bandit, grown = Bandit(16), Bandit(20)
    options = {"estimator": "combined", "selection": "uniform", "prior_strength": None}
    before, after = scheduler_for(bandit, **options), scheduler_for(grown, **options)
    networks = [scheduler.partition.network for scheduler in (before, after)]  # type: ignore[union-attr]
    networks[0].mean_H.copy_(networks[1].mean_H)
    networks[0].scale_H.copy_(networks[1].scale_H)
    for _ in range(5):
        before.observe(bandit.rollouts(before.select(8)))
    after.load_state_dict(before.state_dict())
    learned = before.estimator.prior_strength.value
    assert after.estimator.prior_strength.value == learned != 4.0
    assert after.visits_N[16:].tolist() == [before.visits_N.min()] * 4
    old = before.estimator.beliefs()
    new = after.estimator.beliefs()
    assert new.mean_N[:16] == pytest.approx(old.mean_N, abs=1e-6)
    assert new.strength_N[:16] == pytest.approx(old.strength_N)
    assert new.strength_N[16:] == pytest.approx(np.full(4, learned))


def test_a_step_without_verdicts_after_a_resume_reports_the_same() -> None:
    bandit = Bandit(16)
    first, second = (scheduler_for(bandit, estimator="combined", prior_strength=None) for _ in range(2))
    for _ in range(3):
        first.observe(bandit.rollouts(first.select(8)))
    second.load_state_dict(first.state_dict())
    unjudged = Rollouts([bandit.keys[0]], [np.nan])
    metrics = first.observe(unjudged)
    assert metrics["estimator/prior_strength"] != 4.0
    assert metrics == pytest.approx(second.observe(unjudged), abs=0, nan_ok=True)


def stale_after(steps: int, seen: list[int], **options: object) -> float:
    """Return ``estimator/stale`` of 40 prompts after steps that, except for the first, sampled only ``seen``."""
    bandit = Bandit(40)
    scheduler = scheduler_for(bandit, **options)
    visited = bandit.keys[:30]  # the last ten are never sampled
    for step in range(steps):
        keys = visited if step == 0 else [bandit.keys[i] for i in seen]
        metrics = scheduler.observe(bandit.rollouts(keys))
    return metrics["estimator/stale"]


def test_log_z_is_never_stale() -> None:
    assert stale_after(40, [0, 1]) == 0.0


def test_counts_are_as_old_as_the_last_visit_and_never_visited_prompts_are_not_stale() -> None:
    assert stale_after(21, [0, 1], estimator="counts") == 0.0
    assert stale_after(22, [0, 1], estimator="counts") == 28 / 40


def test_a_combined_estimate_is_as_old_as_its_part_with_the_larger_weight() -> None:
    assert stale_after(22, [0, 1], estimator="combined", prior_strength=4.0) == 28 / 40  # eight results against four
    assert stale_after(22, [0, 1], estimator="combined", prior_strength=9.0) == 0.0


def test_true_accuracies_are_never_stale_and_missing_estimates_have_no_age() -> None:
    assert stale_after(1, [], estimator="oracle") == 0.0
    assert np.isnan(stale_after(1, [], estimator="none", selection="uniform"))


def test_the_pool_is_the_histogram_of_all_estimates() -> None:
    scheduler = scheduler_for(Bandit(8))
    before = scheduler.pool()
    assert before is not None
    assert {i: count for i, count in enumerate(before["counts"]) if count} == {10: 8}  # all at the prior, one half
    assert scheduler_for(Bandit(8), estimator="none", selection="uniform").pool() is None
