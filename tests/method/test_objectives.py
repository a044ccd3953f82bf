"""Trajectory balance: closed forms of the paper's section 4, gradients, and which tensors receive them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.method import LogPartition, sequence_log_ratio, trajectory_balance, trajectory_balance_advantage

BETA = 0.05


def test_loss_is_the_mean_squared_imbalance() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, 9.0], [-0.5, -0.5, -0.5]])
    anchor = torch.tensor([[-1.5, -1.0, 9.0], [-0.5, -1.0, -0.25]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantage = torch.tensor([2.0, -1.0])
    loss, metrics = trajectory_balance(logprobs, anchor, mask, advantage)
    # δ = (0.5 − 1.0) − 2 = −2.5 and (0 + 0.5 − 0.25) + 1 = 1.25
    assert loss.item() == pytest.approx((2.5**2 + 1.25**2) / 2)
    assert metrics["objective/delta_abs"].item() == pytest.approx((2.5 + 1.25) / 2)


def test_advantage_is_raw_reward_over_beta_less_log_z() -> None:
    advantage = trajectory_balance_advantage(torch.tensor([0.0, 1.0, 0.25]), torch.tensor([10.0, 10.0, 3.0]), BETA)
    assert advantage.tolist() == pytest.approx([-10.0, 10.0, 2.0])


def test_gradient_is_two_delta_times_the_score_on_real_tokens_only() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -1.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    advantage = torch.tensor([4.0, -2.0])
    loss, _ = trajectory_balance(logprobs, logprobs.detach(), mask, advantage)
    loss.backward()
    # On-policy δ = −A, so each token's gradient is 2δ/B = −A here.
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-4.0, -4.0, 0.0], [2.0, 2.0, 2.0]]


def test_at_the_behaviour_policy_the_gradient_is_reinforce_with_baseline_scaled_by_two_over_beta() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, requires_grad=True)
    actions, reward, estimate = torch.tensor([0, 1, 2, 2, 3]), torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), 0.3
    logprobs = logits.log_softmax(0)[actions][:, None]
    log_z = torch.full((5,), estimate / BETA)
    loss, _ = trajectory_balance(
        logprobs, logprobs.detach(), torch.ones(5, 1), trajectory_balance_advantage(reward, log_z, BETA)
    )
    (balance,) = torch.autograd.grad(loss, logits, retain_graph=True)
    reinforce = -((reward - estimate) * logits.log_softmax(0)[actions]).mean()
    (expected,) = torch.autograd.grad(reinforce, logits)
    assert torch.allclose(balance, expected * 2 / BETA, atol=1e-4)


def test_neither_anchor_nor_partition_receives_gradient_from_the_policy_loss() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(3, 8)
    partition = LogPartition(embeddings, BETA)
    logprobs = torch.randn(3, 2, requires_grad=True)
    anchor = torch.randn(3, 2, requires_grad=True)
    advantage = trajectory_balance_advantage(torch.ones(3), partition(embeddings), BETA)
    loss, metrics = trajectory_balance(logprobs, anchor, torch.ones(3, 2), advantage)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.abs().min() > 0
    assert anchor.grad is None
    assert all(parameter.grad is None for parameter in partition.parameters())
    assert not any(value.requires_grad for value in metrics.values())


def test_padding_may_hold_infinities() -> None:
    logprobs = torch.tensor([[-1.0, -math.inf]], requires_grad=True)
    anchor = torch.tensor([[-2.0, math.nan]])
    mask = torch.tensor([[True, False]])
    assert sequence_log_ratio(logprobs, anchor, mask).item() == 1.0
    loss, _ = trajectory_balance(logprobs, anchor, mask, torch.tensor([0.0]))
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[2.0, 0.0]]


@given(split=st.integers(1, 7), seed=st.integers(0, 100))
def test_micro_batches_add_up_to_the_whole_batch(split: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logprobs, anchor = torch.randn(8, 5, generator=generator), torch.randn(8, 5, generator=generator)
    mask = torch.rand(8, 5, generator=generator) < 0.7
    advantage = torch.randn(8, generator=generator)
    whole, metrics = trajectory_balance(logprobs, anchor, mask, advantage)
    parts = [
        trajectory_balance(logprobs[rows], anchor[rows], mask[rows], advantage[rows], normalizer=8)
        for rows in (slice(0, split), slice(split, 8))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-5)
    for name, value in metrics.items():
        assert sum(part[name].item() for _, part in parts) == pytest.approx(value.item(), rel=1e-4, abs=1e-5)


def test_the_best_intercept_is_the_mean_of_reward_over_beta_less_log_ratio() -> None:
    """Closed form (a): minimising the sampled loss over log Z."""
    torch.manual_seed(1)
    log_ratio, reward = torch.randn(16, 1) * 0.3, torch.randint(2, (16,)).float()
    log_z = torch.zeros((), requires_grad=True)
    delta = log_z + log_ratio.squeeze(1) - reward / BETA
    (gradient,) = torch.autograd.grad(delta.square().mean(), log_z)
    best = (reward / BETA - log_ratio.squeeze(1)).mean()
    assert gradient.item() == pytest.approx(-2 * best.item(), rel=1e-5)

    def loss_at(value: torch.Tensor) -> float:
        advantage = trajectory_balance_advantage(reward, value.expand(16), BETA)
        return trajectory_balance(log_ratio, torch.zeros(16, 1), torch.ones(16, 1), advantage)[0].item()

    assert loss_at(best) < min(loss_at(best - 0.1), loss_at(best + 0.1))


@pytest.mark.parametrize(("accuracy", "beta"), [(0.5, 1 / 15), (0.1, 0.05), (0.9, 0.5)])
def test_a_frozen_reference_at_its_optimum_is_another_regime(accuracy: float, beta: float) -> None:
    """Closed form (b): with μ frozen and π at its optimum, log Z = log(1 − p + p·e^{1/β}), which is not p/β."""
    reward = torch.tensor([1.0, 0.0])
    reference = torch.tensor([accuracy, 1 - accuracy]).log()
    optimum = (reference + reward / beta).log_softmax(0)
    exact = math.log(1 - accuracy + accuracy * math.exp(1 / beta))
    advantage = trajectory_balance_advantage(reward, torch.full((2,), exact), beta)
    loss, _ = trajectory_balance(optimum[:, None], reference[:, None], torch.ones(2, 1), advantage)
    assert loss.item() == pytest.approx(0.0, abs=1e-8)
    assert abs(beta * exact - accuracy) > 0.03
    if accuracy == 0.5:
        assert beta * exact == pytest.approx(0.954, abs=1e-3)


def test_the_group_mean_as_log_z_gives_the_variance_of_the_imbalance() -> None:
    """Closed form (c): TB with the group-mean log Z is VarGrad, the (biased) variance of log-ratio − r/β."""
    torch.manual_seed(2)
    log_ratio, reward = torch.randn(8), torch.rand(8)
    score = log_ratio - reward / BETA
    advantage = trajectory_balance_advantage(reward, (-score.mean()).expand(8), BETA)
    loss, _ = trajectory_balance(log_ratio[:, None], torch.zeros(8, 1), torch.ones(8, 1), advantage)
    assert loss.item() == pytest.approx(score.var(unbiased=False).item(), rel=1e-4)
