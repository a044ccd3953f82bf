"""The other objectives: values computed by hand, gradients, clipping and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pacedrl.method import clipped_policy_gradient, flow_balance, group_flow_balance, k3_divergence

MASK = torch.tensor([[True, True, False], [True, True, True]])


def ratios(*rows: list[float]) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of π_θ and π_old with these ratios; padding has values that must not be read."""
    width = max(map(len, rows))
    old = torch.full((len(rows), width), -1.0)
    new = torch.tensor([[-1.0 + math.log(r) for r in row] + [math.nan] * (width - len(row)) for row in rows])
    return new.requires_grad_(), old


def test_the_clipped_loss_by_hand() -> None:
    """The ratio of tokens with positive advantage is clipped at 1 + 0.2, with negative advantage at 1 − 0.2."""
    new, old = ratios([1.5, 0.5], [1.5, 0.5, 1.1])
    loss, metrics = clipped_policy_gradient(new, old, MASK, torch.tensor([2.0, -1.0]))
    good = -(1.2 + 0.5) * 2.0 / 2
    bad = (1.5 + 0.8 + 1.1) / 3
    assert loss.item() == pytest.approx((good + bad) / 2)
    assert metrics["objective/clipped"].item() == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_only_tokens_within_the_clip_receive_gradient() -> None:
    """d(−ρA)/d log π = −ρA, divided by the sequence's length and the number of sequences."""
    new, old = ratios([1.5, 0.5], [1.5, 0.5, 1.1])
    clipped_policy_gradient(new, old, MASK, torch.tensor([2.0, -1.0]))[0].backward()
    assert new.grad is not None
    assert new.grad.flatten().tolist() == pytest.approx([0, -0.5 * 2 / 4, 0, 1.5 / 6, 0, 1.1 / 6])


def test_at_the_behaviour_policy_it_is_the_policy_gradient() -> None:
    new, old = ratios([1.0, 1.0], [1.0, 1.0, 1.0])
    advantage = torch.tensor([2.0, -1.0])
    for clip in (0.0, 0.2):
        clipped_policy_gradient(new, old, MASK, advantage, clip_low=clip, clip_high=clip + 0.1)[0].backward()
    assert new.grad is not None
    assert new.grad[0, :2].tolist() == pytest.approx([-2.0 / 2 / 2 * 2] * 2)


def test_the_samplers_mismatch_weighs_each_token_up_to_a_cap_and_not_the_kl() -> None:
    new, old = ratios([1.1, 0.9], [1.0, 1.0, 1.0])
    mismatch = torch.tensor([[0.5, 7.0, math.nan], [1.0, 1.5, 3.0]])  # π_old/π_sampler
    sampler = old - mismatch.log()
    loss, metrics = clipped_policy_gradient(
        new, old, MASK, torch.tensor([2.0, -1.0]), sampler_logprobs_BT=sampler, sampler_weight_cap=2.0
    )
    good = -(0.5 * 1.1 + 2.0 * 0.9) * 2.0 / 2
    bad = (1.0 + 1.5 + 2.0) / 3
    assert loss.item() == pytest.approx((good + bad) / 2)
    assert metrics["objective/weight"].item() == pytest.approx(((0.5 + 2.0) / 2 + 4.5 / 3) / 2)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0, :2].tolist() == pytest.approx([-0.5 * 1.1 * 2 / 4, -2.0 * 0.9 * 2 / 4])
    still = torch.zeros(2)
    reference = {"kl_coefficient": 0.5, "reference_logprobs_BT": old - 1.0}
    with_cap = clipped_policy_gradient(new, old, MASK, still, sampler_logprobs_BT=sampler, **reference)[0]
    assert with_cap.item() == pytest.approx(clipped_policy_gradient(new, old, MASK, still, **reference)[0].item())


def test_clip_higher_lets_good_tokens_rise_further() -> None:
    new, old = ratios([1.25, 1.25])
    mask, advantage = torch.ones(1, 2), torch.tensor([1.0])
    assert clipped_policy_gradient(new, old, mask, advantage, clip_high=0.2)[0].item() == pytest.approx(-1.2)
    assert clipped_policy_gradient(new, old, mask, advantage, clip_high=0.28)[0].item() == pytest.approx(-1.25)


@pytest.mark.parametrize(
    ("length", "weights"),
    [(None, [1 / 4, 1 / 6]), (2.5, [1 / 5, 1 / 5]), (10.0, [1 / 20, 1 / 20])],
    ids=["sequence mean", "token mean", "constant"],
)
def test_how_tokens_weigh(length: float | None, weights: list[float]) -> None:
    """With sequences of 2 and 3 tokens, the mean length 2.5 gives all five tokens the same weight."""
    new, old = ratios([1.0, 1.0], [1.0, 1.0, 1.0])
    clipped_policy_gradient(new, old, MASK, torch.tensor([1.0, 1.0]), length=length)[0].backward()
    assert new.grad is not None
    assert [-row[0].item() for row in new.grad] == pytest.approx(weights)


def test_the_sequence_ratio_is_the_geometric_mean_of_the_tokens() -> None:
    new, old = ratios([2.0, 0.5], [1.1, 1.1, 1.1])
    loss, metrics = clipped_policy_gradient(
        new, old, MASK, torch.tensor([1.0, 1.0]), ratio="sequence", clip_low=0.05, clip_high=0.05
    )
    assert loss.item() == pytest.approx(-(1.0 + 1.05) / 2)
    assert metrics["objective/clipped"].item() == pytest.approx(0.5)
    loss.backward()
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([-1 / 4, -1 / 4, 0.0])
    assert new.grad[1].tolist() == [0.0, 0.0, 0.0]


def test_k3_is_nonnegative_and_its_mean_is_the_divergence() -> None:
    torch.manual_seed(0)
    new, reference = torch.randn(5).log_softmax(0), torch.randn(5).log_softmax(0)
    draws = torch.multinomial(new.exp(), 200_000, replacement=True)
    k3 = k3_divergence(new[draws][:, None], reference[draws][:, None], torch.ones(len(draws), 1))
    assert k3.min() >= 0
    divergence = (new.exp() * (new - reference)).sum().item()
    assert k3.mean().item() == pytest.approx(divergence, rel=0.02)


def test_the_reference_pulls_by_its_coefficient() -> None:
    new, old = ratios([1.0, 1.0], [1.0, 1.0, 1.0])
    reference, advantage = torch.full((2, 3), -2.0), torch.zeros(2)
    loss, metrics = clipped_policy_gradient(
        new, old, MASK, advantage, kl_coefficient=0.5, reference_logprobs_BT=reference
    )
    k3 = math.exp(-1.0) + 1.0 - 1.0
    assert loss.item() == pytest.approx(0.5 * k3)
    assert metrics["kl/reference"].item() == pytest.approx(k3)


def test_flow_balance_by_hand() -> None:
    """δ averages over tokens; w is a ratio of whole completions, clipped, without gradient."""
    new, old = ratios([2.0, 2.0], [1.05, 1.05, 1.05])
    reference = torch.full((2, 3), -1.5)
    loss, metrics = flow_balance(new, old, reference, MASK, torch.tensor([1.0, -0.5]), clip_low=0.2, clip_high=0.28)
    delta, weight = [0.5 + math.log(2) - 1.0, 0.5 + math.log(1.05) + 0.5], [1.28, 1.05**3]
    assert loss.item() == pytest.approx((weight[0] * delta[0] ** 2 + weight[1] * delta[1] ** 2) / 2, rel=1e-5)
    assert metrics["objective/weight"].item() == pytest.approx(sum(weight) / 2)
    assert metrics["objective/delta_abs"].item() == pytest.approx((abs(delta[0]) + delta[1]) / 2)
    loss.backward()
    assert new.grad is not None
    expected = [weight[0] * delta[0] / 2, weight[0] * delta[0] / 2, 0.0, *[weight[1] * delta[1] / 3] * 3]
    assert new.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ratio", "weight"), [(4.0, 10.0), (3.0, 9.0), (1e-3, 1e-6), (1e30, 10.0)])
def test_flowrls_newer_code_caps_the_weight_at_10_and_has_no_lower_bound(ratio: float, weight: float) -> None:
    new, old = ratios([ratio, ratio])
    metrics = flow_balance(new, old, old, torch.ones(1, 2), torch.zeros(1), clip_low=1.0, clip_high=9.0)[1]
    assert metrics["objective/weight"].item() == pytest.approx(weight)


@pytest.mark.parametrize(
    ("advantage", "gap"), [(0.5, -0.5), (10.0, -1.0), (-10.0, 2.0)], ids=["within", "raised", "lowered"]
)
def test_the_flow_gap_is_bounded_differently_up_and_down(advantage: float, gap: float) -> None:
    """At π_θ = π_old the loss is g̃², and the gradient of each token 2·g̃/T."""
    new, old = ratios([1.0, 1.0])
    options = {"weight_cap": 2.0, "gap_low": 1.0, "gap_high": 2.0}
    loss, metrics = group_flow_balance(new, old, torch.ones(1, 2), torch.tensor([advantage]), **options)
    loss.backward()
    assert loss.item() == pytest.approx(gap**2)
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([gap, gap])
    assert metrics["objective/clipped"].item() == float(abs(advantage) > 1)


def test_the_clipped_gap_stays_while_the_policy_moves() -> None:
    """Equation 8: the clipped gap is that of the policy that sampled, and the move since then is not clipped."""
    new, old = ratios([1.5, 1.5], [0.5, 2.0, 1.0])
    options = {"weight_cap": 1.2, "gap_low": 0.2, "gap_high": 0.28}
    loss, metrics = group_flow_balance(new, old, MASK, torch.tensor([4.0, -4.0]), **options)
    moved = [math.log(1.5), 0.0]
    delta = [-0.2 + moved[0], 0.28 + moved[1]]
    assert loss.item() == pytest.approx((1.2 * delta[0] ** 2 + 1.0 * delta[1] ** 2) / 2, rel=1e-5)
    assert metrics["objective/weight"].item() == pytest.approx((1.2 + 1.0) / 2)
    assert metrics["objective/delta_abs"].item() == pytest.approx((delta[0] + delta[1]) / 2)
    loss.backward()
    assert new.grad is not None
    expected = [1.2 * delta[0] / 2, 1.2 * delta[0] / 2, 0.0, *[delta[1] / 3] * 3]
    assert new.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def _clipped(*tensors: Tensor, **options: Any) -> Any:
    new, old, reference, mask, advantage = tensors
    return clipped_policy_gradient(
        new, old, mask, advantage, length=2.0, kl_coefficient=0.1, reference_logprobs_BT=reference, **options
    )


def _group_flow(*tensors: Tensor, **options: Any) -> Any:
    new, old, _, mask, advantage = tensors
    return group_flow_balance(new, old, mask, advantage, weight_cap=1.5, gap_low=0.5, gap_high=1.0, **options)


@pytest.mark.parametrize("loss_of", [_clipped, flow_balance, _group_flow])
@given(split=st.integers(1, 7), seed=st.integers(0, 50))
def test_micro_batches_add_up_to_the_whole_batch(loss_of: Callable[..., Any], split: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    new, old, reference = (0.3 * torch.randn(8, 5, generator=generator) for _ in range(3))
    mask = torch.rand(8, 5, generator=generator) < 0.7
    advantage = torch.randn(8, generator=generator)
    whole, metrics = loss_of(new, old, reference, mask, advantage)
    parts = [
        loss_of(new[rows], old[rows], reference[rows], mask[rows], advantage[rows], normalizer=8)
        for rows in (slice(0, split), slice(split, 8))
    ]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-4, abs=1e-5)
    for name, value in metrics.items():
        assert sum(part[name].item() for _, part in parts) == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("loss_of", [_clipped, flow_balance, _group_flow])
def test_gradient_reaches_the_policy_alone(loss_of: Callable[..., Any]) -> None:
    new, old = ratios([1.3, 0.9], [1.1, 1.0, 0.7])
    others = [old.clone().requires_grad_(), (old - 0.3).requires_grad_()]
    advantage = torch.tensor([1.0, -2.0], requires_grad=True)
    loss, metrics = loss_of(new, *others, MASK, advantage)
    loss.backward()
    assert new.grad is not None
    assert new.grad.isfinite().all()
    assert (new.grad[MASK] != 0).any()
    assert (new.grad[~MASK] == 0).all()
    assert all(tensor.grad is None for tensor in (*others, advantage))
    assert not any(value.requires_grad for value in metrics.values())
