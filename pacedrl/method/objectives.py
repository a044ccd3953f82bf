"""Losses of the policy: pure functions from log-probabilities and advantages to (loss, metrics).

Shapes: ``_B`` sequences, ``_T`` completion tokens (right-padded; ``mask_BT`` is 1 on real tokens, 0 on padding, where
anything may stand). ``old`` is the behaviour policy that sampled the completions, ``reference`` the frozen initial one.
Gradient flows into ``logprobs_BT`` alone. Loss and metrics are sums over the sequences given, divided by
``normalizer``, the number of sequences in the whole batch (default: in this one), so that those of micro-batches add up
to those of the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalar tensors without gradient."""
STD_EPSILON = 1e-4
"""Added to a group's standard deviation; TRL's value."""


def trajectory_balance_advantage(reward_B: Tensor, log_z_B: Tensor, beta: float) -> Tensor:
    """A(x, y) = r/β − log Z(x) (PACED-RL, arXiv 2602.12642).

    ``reward_B`` is raw: z-scoring it first would leave log Z nothing to learn of difficulty.
    """
    return reward_B / beta - log_z_B


def group_relative_advantage(reward_B: Tensor, group_B: Tensor, scale_by_std: bool = True) -> Tensor:
    """r − mean_G(r), divided by the group's standard deviation where asked: GRPO's z-score, arXiv 2402.03300.

    Without the division it is Dr. GRPO's (arXiv 2503.20783). The standard deviation is the sample's (n − 1), with
    `STD_EPSILON` added; the paper does not say which, TRL does the same. A group of one gets 0.
    """
    # In double precision: `STD_EPSILON` would blow the rounding of equal rewards up into an advantage.
    exact_B = reward_B.double()
    centred_B = exact_B - group_mean(exact_B, group_B)
    if scale_by_std:
        size_B = _group_size(group_B)
        variance_B = group_mean(centred_B.square(), group_B) * size_B / (size_B - 1).clamp_min(1)
        centred_B = centred_B / (variance_B.sqrt() + STD_EPSILON)
    return centred_B.to(reward_B.dtype)


def group_mean_log_z(reward_B: Tensor, group_B: Tensor, beta: float, log_ratio_B: Tensor | float = 0.0) -> Tensor:
    """log Z(x) = mean_G(r/β − log-ratio), the sampled loss's minimiser, in place of a learned one; [B].

    VarGrad as in TBA, arXiv 2503.18929, with the log-ratio log π_θ − log μ taken once at the start of the batch:
    against π_old it is 0 there. GFlowRL, arXiv 2607.13394, with mean_t(log π_old − log π_ref).
    """
    return group_mean(reward_B / beta - log_ratio_B, group_B)


def blended_baseline(reward_B: Tensor, group_B: Tensor, estimate_B: Tensor, strength_B: Tensor) -> Tensor:
    """b_i = (s·p̂ + Σ_{j≠i} r_j) / (s + G − 1): the estimate and the other completions, weighted by their variances.

    Ours. With p ~ Beta of mean p̂ and strength s (in completions), the variance of p̂ about p is m/(s + 1) and that of
    the leave-one-out mean m·s/((s + 1)(G − 1)), m = p̂(1 − p̂): inverse-variance weights stand as s to G − 1, which also
    makes b the posterior mean. That holds for a true prior; an estimate that was fitted to the prompt's own results,
    and then counts them again, is trusted a little too much. s = ∞ is the estimate alone, s = 0 the leave-one-out mean
    (RLOO). b does not depend on r_i as long as ``estimate_B`` does not. A group of one gets p̂.
    """
    others_B = _group_size(group_B) - 1
    other_mean_B = (group_mean(reward_B, group_B) * (others_B + 1) - reward_B) / others_B.clamp_min(1)
    weight_B = torch.where(others_B > 0, others_B / (strength_B + others_B), 0.0)
    return estimate_B + weight_B * (other_mean_B - estimate_B)


def trajectory_balance(
    logprobs_BT: Tensor,
    anchor_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Trajectory balance against the behaviour policy: mean of δ², δ = Σ_t (log π_θ − log μ)_t − A.

    PACED-RL, arXiv 2602.12642, with μ = π_old and A = r/β − log Z_φ(x)
    (`pacedrl.method.objectives.trajectory_balance_advantage`). Departures: log Z enters through A as a constant, since
    φ is fitted apart, on its own timescale (`pacedrl.method.partition`); the two gradients, 2δ·∇log π_θ and 2δ, are
    the paper's joint ones. Log-probabilities are summed over tokens, not averaged as in FlowRL.

    Metrics: ``loss/objective`` and ``objective/delta_abs``, the mean of |δ|.
    """
    delta_B = sequence_log_ratio(logprobs_BT, anchor_logprobs_BT, mask_BT) - advantage_B.detach()
    return _squared(delta_B, torch.ones_like(delta_B), normalizer)


def clipped_policy_gradient(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Literal["token", "sequence"] = "token",
    length: float | None = None,
    kl_coefficient: float = 0.0,
    reference_logprobs_BT: Tensor | None = None,
    sampler_logprobs_BT: Tensor | None = None,
    sampler_weight_cap: float = 2.0,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The GRPO family: −min(ρ·A, clip(ρ, 1 − clip_low, 1 + clip_high)·A) of every token, ρ = π_θ/π_old.

    - GRPO, arXiv 2402.03300: A is the group's z-score; a sequence's tokens are averaged (``length`` None), then the
      sequences; with ``kl_coefficient`` times the k3 estimate of KL(π_θ‖π_ref) added to every token.
    - Dr. GRPO, arXiv 2503.20783: A is centred only; token sums are divided by a constant ``length``, the limit.
    - DAPO, arXiv 2503.14476: ``clip_high`` > ``clip_low``; ``length`` the whole batch's mean length, which makes the
      loss a mean over tokens.
    - GSPO, arXiv 2507.18071: ``ratio`` "sequence", ρ = exp(mean_t(log π_θ − log π_old)), one for all tokens.

    The papers do not say whose log-probabilities of π_old; our trainer takes its own, as TRL does, since the sampler's
    may differ by more than a narrow clip. What that leaves uncorrected is corrected where ``sampler_logprobs_BT`` are
    given: each token's loss is weighted by min(π_old/π_sampler, ``sampler_weight_cap``), detached (truncated importance
    sampling, Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").

    Metrics: ``loss/objective``, ``objective/clipped`` (share of a sequence's tokens where the clip took the gradient,
    mean over sequences), ``kl/reference`` (k3, nats a token, mean over sequences; only with a reference) and
    ``objective/weight`` (that of the sampler's mismatch, mean over tokens and sequences; only with the sampler's).
    """
    count = _count(advantage_B, normalizer)
    advantage_B1, tokens_B = advantage_B.detach()[:, None], mask_BT.sum(dim=1).clamp_min(1)
    log_ratio_BT = _masked(logprobs_BT - old_logprobs_BT.detach(), mask_BT)
    if ratio == "sequence":
        log_ratio_BT = (log_ratio_BT.sum(dim=1) / tokens_B)[:, None].expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    unclipped_BT = ratio_BT * advantage_B1
    clipped_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage_B1
    took_BT = clipped_BT < unclipped_BT
    # Not the minimum: where both are equal the gradient is the unclipped one's, whatever torch makes of a clamp there.
    loss_BT = -torch.where(took_BT, clipped_BT, unclipped_BT)
    metrics = {"objective/clipped": (_masked(took_BT.float(), mask_BT).sum(dim=1) / tokens_B).sum() / count}
    if sampler_logprobs_BT is not None:
        mismatch_BT = _masked(old_logprobs_BT - sampler_logprobs_BT, mask_BT).detach()
        weight_BT = mismatch_BT.exp().clamp_max(sampler_weight_cap)
        loss_BT = weight_BT * loss_BT
        metrics["objective/weight"] = (_masked(weight_BT, mask_BT).sum(dim=1) / tokens_B).sum() / count
    if reference_logprobs_BT is not None:
        kl_BT = k3_divergence(logprobs_BT, reference_logprobs_BT, mask_BT)
        loss_BT = loss_BT + kl_coefficient * kl_BT
        metrics["kl/reference"] = (kl_BT.detach().sum(dim=1) / tokens_B).sum() / count
    loss = (_masked(loss_BT, mask_BT).sum(dim=1) / (tokens_B if length is None else length)).sum() / count
    return loss, {"loss/objective": loss.detach()} | metrics


def flow_balance(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """FlowRL, arXiv 2509.15207: mean of w·δ², δ = mean_t(log π_θ − log π_ref) − A, A = r̂/β − log Z_φ(x).

    r̂ is the group's z-scored reward (FlowRL's own β is our 1/β) and w = clip(π_θ/π_old, 1 − clip_low, 1 + clip_high),
    detached. The paper's π_θ/π_old is of whole sequences; like its later code, and unlike the first, which forgot the
    clip, we take the mean over tokens of the log-ratio, so that long completions do not all lie at the bounds.
    Departure: log Z reads a fixed embedding of the prompt and is fitted apart, without w.

    Metrics: ``loss/objective``, ``objective/delta_abs`` and ``objective/weight``, the mean of w.
    """
    tokens_B = mask_BT.sum(dim=1).clamp_min(1)
    delta_B = sequence_log_ratio(logprobs_BT, reference_logprobs_BT, mask_BT) / tokens_B - advantage_B.detach()
    ratio_B = (sequence_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).detach() / tokens_B).exp()
    weight_B = ratio_B.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss, metrics = _squared(delta_B, weight_B, normalizer)
    return loss, metrics | {"objective/weight": weight_B.sum() / _count(advantage_B, normalizer)}


def group_flow_balance(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    reference_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    *,
    weight_cap: float,
    gap_raise: float,
    gap_lower: float,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """GFlowRL, arXiv 2607.13394: FlowRL with the group's own log Z in place of a learned one.

    A = r/β − log Z with log Z = mean_G(r/β + mean_t(log π_ref − log π_old)), no gradient
    (`pacedrl.method.objectives.group_mean_log_z`); the weight is w = min(π_θ/π_old, ``weight_cap``), detached; the
    flow gap δ is clipped to [−``gap_raise``, ``gap_lower``]: how hard one sample may raise and lower its probability.

    We know the method from a summary only. Assumed: log-probabilities are averaged over tokens as in FlowRL, so is the
    log-ratio in w; the reward is raw; and clipping means that a gap beyond a bound pulls like one at the bound (the
    loss goes on linearly), rather than not at all.

    Metrics: as `flow_balance`, and ``objective/clipped``, the share of sequences whose gap was clipped.
    """
    count = _count(advantage_B, normalizer)
    tokens_B = mask_BT.sum(dim=1).clamp_min(1)
    delta_B = sequence_log_ratio(logprobs_BT, reference_logprobs_BT, mask_BT) / tokens_B - advantage_B.detach()
    weight_B = (sequence_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).detach() / tokens_B).exp()
    weight_B = weight_B.clamp_max(weight_cap)
    bounded_B = delta_B.detach().clamp(-gap_raise, gap_lower)
    # c·(2δ − c) is δ² within the bounds and its tangent beyond them.
    loss = (weight_B * bounded_B * (2 * delta_B - bounded_B)).sum() / count
    return loss, {
        "loss/objective": loss.detach(),
        "objective/delta_abs": delta_B.detach().abs().sum() / count,
        "objective/weight": weight_B.sum() / count,
        "objective/clipped": (bounded_B != delta_B.detach()).float().sum() / count,
    }


def sequence_log_ratio(logprobs_BT: Tensor, anchor_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Σ_t (log π_θ − log μ)_t over real tokens, shape [B]; gradient flows into ``logprobs_BT`` alone.

    Padding may hold anything, infinities included: it is masked out, not multiplied by zero.
    """
    return _masked(logprobs_BT - anchor_logprobs_BT.detach(), mask_BT).sum(dim=-1)


def k3_divergence(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """k3 = e^x − x − 1 with x = log π_ref − log π_θ, at each token, [B, T]: ≥ 0, an estimate of KL(π_θ‖π_ref)."""
    gap_BT = _masked(reference_logprobs_BT.detach() - logprobs_BT, mask_BT)
    return gap_BT.exp() - gap_BT - 1.0


def group_mean(values_B: Tensor, group_B: Tensor) -> Tensor:
    """Each completion's group mean, [B]."""
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    total_K = torch.zeros(groups, dtype=values_B.dtype).index_add_(0, group_B, values_B)
    return total_K[group_B] / _group_size(group_B)


def _group_size(group_B: Tensor) -> Tensor:
    return torch.bincount(group_B)[group_B]


def _squared(delta_B: Tensor, weight_B: Tensor, normalizer: float | None) -> tuple[Tensor, Metrics]:
    count = _count(delta_B, normalizer)
    loss = (weight_B * delta_B.square()).sum() / count
    return loss, {
        "loss/objective": loss.detach(),
        "objective/delta_abs": delta_B.detach().abs().sum() / count,
    }


def _masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT.bool(), values_BT, torch.zeros_like(values_BT))


def _count(values_B: Tensor, normalizer: float | None) -> float:
    return float(len(values_B)) if normalizer is None else normalizer
