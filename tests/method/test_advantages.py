"""Advantages equal values computed by hand, and the baselines have the right limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.method import (
    blended_baseline,
    group_mean_log_z,
    group_relative_advantage,
    trajectory_balance_advantage,
)
from pacedrl.method.objectives import STD_EPSILON

REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 1.0])
GROUP = torch.tensor([0, 0, 1, 0, 0, 2])  # a group of four, two of one


def test_group_z_scores_by_hand() -> None:
    """(1, 0, 1, ½) has mean 5/8 and squared deviations 9/64 + 25/64 + 9/64 + 1/64 = 44/64 over three."""
    std = (44 / 64 / 3) ** 0.5 + STD_EPSILON
    expected = [0.375 / std, -0.625 / std, 0.0, 0.375 / std, -0.125 / std, 0.0]
    assert group_relative_advantage(REWARD, GROUP).tolist() == pytest.approx(expected, rel=1e-5)


def test_without_the_division_the_advantage_is_centred_only() -> None:
    advantage = group_relative_advantage(REWARD, GROUP, scale_by_std=False)
    assert advantage.tolist() == pytest.approx([0.375, -0.625, 0.0, 0.375, -0.125, 0.0])


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=24))
def test_group_advantages_sum_to_zero_and_survive_equal_rewards(rows: list[tuple[int, float]]) -> None:
    names = sorted({group for group, _ in rows})
    group = torch.tensor([names.index(g) for g, _ in rows])
    reward = torch.tensor([r for _, r in rows])
    for scale in (True, False):
        advantage = group_relative_advantage(reward, group, scale)
        assert advantage.isfinite().all()
        for g in range(len(names)):
            assert float(advantage[group == g].sum()) == pytest.approx(0.0, abs=1e-4)


@given(st.floats(0, 1, width=32), st.integers(1, 16))
def test_equal_rewards_give_no_advantage_at_all(reward: float, size: int) -> None:
    advantage = group_relative_advantage(torch.full((size,), reward), torch.zeros(size, dtype=torch.long))
    assert advantage.abs().max() < 1e-11


def test_the_group_mean_log_z_minimises_the_sampled_loss() -> None:
    """Closed forms (a) and (c): with it as log Z, the mean gap of every group is 0."""
    beta, log_ratio = 0.1, torch.tensor([0.3, -0.2, 0.5, 0.1, 0.0, -1.0])
    log_z = group_mean_log_z(REWARD, GROUP, beta, log_ratio)
    delta = log_ratio - trajectory_balance_advantage(REWARD, log_z, beta)
    for group in range(3):
        assert float(delta[group == GROUP].mean()) == pytest.approx(0.0, abs=1e-5)


def test_at_the_behaviour_policy_the_group_mean_log_z_is_the_mean_reward_over_beta() -> None:
    assert group_mean_log_z(REWARD, GROUP, 0.05)[0].item() == pytest.approx(0.625 / 0.05)


def test_the_blended_baseline_by_hand() -> None:
    estimate, strength = torch.full((6,), 0.3), torch.full((6,), 2.0)
    baseline = blended_baseline(REWARD, GROUP, estimate, strength)
    others = [1.5, 2.5, 0.0, 1.5, 2.0, 0.0]
    evidence = [5.0, 5.0, 2.0, 5.0, 5.0, 2.0]
    expected = [(0.6 + other) / n for other, n in zip(others, evidence, strict=True)]
    assert baseline.tolist() == pytest.approx(expected)


def test_the_blended_baseline_lies_between_estimate_and_leave_one_out_mean() -> None:
    estimate = torch.full((6,), 0.3)
    sure = blended_baseline(REWARD, GROUP, estimate, torch.full((6,), torch.inf))
    assert sure.tolist() == pytest.approx([0.3] * 6)
    unsure = blended_baseline(REWARD, GROUP, estimate, torch.zeros(6))
    assert unsure.tolist() == pytest.approx([0.5, 2.5 / 3, 0.3, 0.5, 2 / 3, 0.3])


def test_the_blended_baseline_does_not_know_its_own_completion() -> None:
    estimate, strength = torch.full((6,), 0.3), torch.full((6,), 2.0)
    changed = REWARD.clone()
    changed[1] = 1.0
    before = blended_baseline(REWARD, GROUP, estimate, strength)
    after = blended_baseline(changed, GROUP, estimate, strength)
    assert after[1] == before[1]
    assert (after[[0, 3, 4]] > before[[0, 3, 4]]).all()


def test_the_blended_baselines_weights_are_inverse_variances() -> None:
    """With p ~ Beta(s·m, s·(1 − m)), the weights s : n of m and the mean of n rewards have the smallest error."""
    generator = torch.Generator().manual_seed(0)
    strength, mean, others = 4.0, 0.3, 7
    concentration = torch.tensor([strength * mean, strength * (1 - mean)])
    torch.manual_seed(0)
    accuracy = torch.distributions.Beta(*concentration).sample((200_000,))
    rewards = torch.rand(200_000, others, generator=generator) < accuracy[:, None]
    errors = {
        w: float((w * mean + (1 - w) * rewards.float().mean(1) - accuracy).square().mean())
        for w in (0.2, 0.3, strength / (strength + others), 0.43, 0.55)
    }
    assert min(errors, key=lambda w: errors[w]) == strength / (strength + others)
