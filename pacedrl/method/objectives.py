"""Advantages and losses of the policy, as pure functions.

Advantages map rewards to one number per completion, without gradient. ``group_B`` numbers the group (prompt) of each
completion from 0. Groups may differ in size, because completions that could not be judged are left out. ``reward_B`` is
raw, in [0, 1]. All tensors of a call are on one device, which may be any.

Losses map log-probabilities and advantages to (loss, metrics). Shapes: ``_B`` sequences, ``_T`` completion tokens,
padded on the right. ``mask_BT`` is 1 on tokens and 0 on padding; values on padding are ignored. ``old`` is the
behaviour policy that sampled the completions, ``reference`` the frozen initial policy. Only ``logprobs_BT`` receives a
gradient. Loss and metrics are sums over the given sequences, divided by ``normalizer``, the number of sequences in the
whole batch (default: in this call), so that the values of micro-batches add up to those of the whole batch.
"""

from typing import Literal

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalar tensors without gradient, by name."""
STD_EPSILON = 1e-4
"""Constant added to a group's standard deviation, as in TRL."""


def trajectory_balance_advantage(reward_B: Tensor, log_z_B: Tensor, beta: float) -> Tensor:
    """Return A(x, y) = r/β − log Z(x) (PACED-RL, arXiv 2602.12642).

    ``reward_B`` is raw: with z-scored rewards, log Z could not learn a prompt's difficulty.
    """
    return reward_B / beta - log_z_B


def group_relative_advantage(reward_B: Tensor, group_B: Tensor, scale_by_std: bool = True) -> Tensor:
    """Return r − mean_G(r), divided by the group's standard deviation if ``scale_by_std``.

    With the division it is GRPO's z-score (arXiv 2402.03300), without it Dr. GRPO's advantage (arXiv 2503.20783). The
    paper does not specify the standard deviation; like TRL we take the sample's (n − 1) and add `STD_EPSILON`. The
    advantage of a group of one is 0.
    """
    # Double precision: dividing by `STD_EPSILON` would turn rounding errors of equal rewards into advantages.
    exact_B = reward_B.double()
    centred_B = exact_B - group_mean(exact_B, group_B)
    if scale_by_std:
        size_B = _group_size(group_B)
        variance_B = group_mean(centred_B.square(), group_B) * size_B / (size_B - 1).clamp_min(1)
        centred_B = centred_B / (variance_B.sqrt() + STD_EPSILON)
    return centred_B.to(reward_B.dtype)


def group_mean_log_z(reward_B: Tensor, group_B: Tensor, beta: float, log_ratio_B: Tensor | float = 0.0) -> Tensor:
    """Return log Z(x) = mean_G(r/β − log-ratio), the minimiser of the sampled loss, shape [B].

    It replaces a learned log Z. With the log-ratio log π_θ − log μ it is VarGrad as in TBA (arXiv 2503.18929); we
    compute the ratio once at the start of the batch, where it is 0 for μ = π_old. With mean_t(log π_old − log π_ref) it
    is GFlowRL's (arXiv 2607.13394, eq. 4). That paper writes the ratio there as a sum over tokens, but as a mean in the
    gap that log Z is subtracted from (eq. 6); we take the mean in both, so that they cancel.
    """
    return group_mean(reward_B / beta - log_ratio_B, group_B)


def blended_baseline(reward_B: Tensor, group_B: Tensor, estimate_B: Tensor, strength_B: Tensor) -> Tensor:
    """Return b_i = (s·p̂ + Σ_{j≠i} r_j) / (s + G − 1): the estimate and the other completions, weighted by precision.

    This is our own baseline. If p has a Beta distribution of mean p̂ and strength s (in completions), the variance of
    p̂ about p is m/(s + 1) and that of the leave-one-out mean is m·s/((s + 1)(G − 1)), with m = p̂(1 − p̂). The
    inverse-variance weights are therefore in the ratio s : G − 1, and b is the posterior mean. This assumes a true
    prior: an estimate that was fitted to the prompt's own results counts them twice and gets slightly too much weight.
    s = ∞ gives the estimate alone, s = 0 the leave-one-out mean (RLOO). b does not depend on r_i if ``estimate_B`` does
    not. The baseline of a group of one is p̂.
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
    """Return the trajectory-balance loss against the behaviour policy: mean of δ², δ = Σ_t (log π_θ − log μ)_t − A.

    PACED-RL (arXiv 2602.12642) takes μ = π_old and A = r/β − log Z_φ(x) (`trajectory_balance_advantage`). Departure:
    log Z enters A as a constant, because φ is fitted separately on its own timescale (`pacedrl.method.partition`). The
    gradients, 2δ·∇log π_θ and 2δ, are those of the paper's joint loss. Log-probabilities are summed over tokens, not
    averaged as in FlowRL.

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
    """Return the loss of the GRPO family: −min(ρ·A, clip(ρ, 1 − clip_low, 1 + clip_high)·A) per token, ρ = π_θ/π_old.

    - GRPO (arXiv 2402.03300): A is the group's z-score. The loss is averaged over the tokens of a sequence (``length``
      None), then over sequences. ``kl_coefficient`` times the k3 estimate of KL(π_θ‖π_ref) is added to every token.
    - Dr. GRPO (arXiv 2503.20783): A is only centred. Sums over tokens are divided by the constant ``length``, the
      maximum length.
    - DAPO (arXiv 2503.14476): ``clip_high`` > ``clip_low``. ``length`` is the mean length in the whole batch, so that
      the loss is a mean over tokens.
    - GSPO (arXiv 2507.18071): ``ratio`` is "sequence": all tokens share ρ = exp(mean_t(log π_θ − log π_old)).

    The papers do not say whether the trainer or the sampler computes log π_old. Like TRL, our trainer computes it,
    because the sampler's values may differ by more than a narrow clip range. ``sampler_logprobs_BT`` corrects for that
    difference: the loss of each token is weighted by min(π_old/π_sampler, ``sampler_weight_cap``), detached (truncated
    importance sampling, Yao et al., 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").

    Metrics: ``loss/objective``; ``objective/clipped``, the share of a sequence's tokens whose gradient is clipped, mean
    over sequences; with a reference, ``kl/reference``, k3 in nats per token, mean over sequences; with the sampler's
    log-probabilities, ``objective/weight``, the weight's mean over tokens, then over sequences.
    """
    count = normalizer or len(advantage_B)
    advantage_B1, tokens_B = advantage_B.detach()[:, None], _tokens(mask_BT)
    log_ratio_BT = _masked(logprobs_BT - old_logprobs_BT.detach(), mask_BT)
    if ratio == "sequence":
        log_ratio_BT = (log_ratio_BT.sum(dim=1) / tokens_B)[:, None].expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    unclipped_BT = ratio_BT * advantage_B1
    clipped_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage_B1
    took_BT = clipped_BT < unclipped_BT
    # torch.where instead of torch.minimum: where both are equal, the gradient must be that of the unclipped term.
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
    """Return FlowRL's loss (arXiv 2509.15207): mean of w·δ², δ = mean_t(log π_θ − log π_ref) − A.

    A = r̂/β − log Z_φ(x), where r̂ is the group's z-scored reward (FlowRL's β is our 1/β). The weight w is the ratio
    π_θ/π_old of whole completions, clipped to [1 − clip_low, 1 + clip_high] and detached. This is the paper's formula.
    Its first code does not clip w, and its newer one (verl's recipes) only caps it at 10, which is ``clip_low`` 1 and
    ``clip_high`` 9 here. Departure: log Z reads a fixed embedding of the prompt and is fitted separately, without w.

    Metrics: ``loss/objective``, ``objective/delta_abs`` and ``objective/weight``, the mean of w.
    """
    log_ratio_B = sequence_log_ratio(logprobs_BT, reference_logprobs_BT, mask_BT) / _tokens(mask_BT)
    weight_B = sequence_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).detach().exp()
    weight_B = weight_B.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss, metrics = _squared(log_ratio_B - advantage_B.detach(), weight_B, normalizer)
    return loss, metrics | {"objective/weight": weight_B.sum() / (normalizer or len(weight_B))}


def group_flow_balance(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    *,
    weight_cap: float,
    gap_low: float,
    gap_high: float,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Return GFlowRL's loss (arXiv 2607.13394, eq. 8): mean of w·(g̃ + ℓ)², ℓ = mean_t(log π_θ − log π_old).

    The flow gap g = log Z + mean_t(log π_old − log π_ref) − r/β belongs to the policy that sampled, so it is constant.
    It enters as ``advantage_B`` = −g, with the group's own log Z (`group_mean_log_z`). g̃ is g clipped to [−gap_low,
    gap_high]; a negative gap raises the completion's probability. The weight w is min(e^ℓ, ``weight_cap``), detached.
    At π_θ = π_old the gradient is 2·g̃·∇ℓ.

    Metrics: those of `flow_balance` (δ is the loss's g̃ + ℓ), and ``objective/clipped``, the share of sequences whose
    gap was clipped.
    """
    count, gap_B = normalizer or len(advantage_B), -advantage_B.detach()
    clipped_B = gap_B.clamp(-gap_low, gap_high)
    log_ratio_B = sequence_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT) / _tokens(mask_BT)
    weight_B = log_ratio_B.detach().exp().clamp_max(weight_cap)
    loss, metrics = _squared(clipped_B + log_ratio_B, weight_B, normalizer)
    clipped = (clipped_B != gap_B).float().sum() / count
    return loss, metrics | {"objective/weight": weight_B.sum() / count, "objective/clipped": clipped}


def sequence_log_ratio(logprobs_BT: Tensor, anchor_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return Σ_t (log π_θ − log μ)_t over the tokens of each sequence, shape [B]; only ``logprobs_BT`` gets a gradient.

    Padding is masked out rather than multiplied by zero, so it may contain infinities and NaN.
    """
    return _masked(logprobs_BT - anchor_logprobs_BT.detach(), mask_BT).sum(dim=-1)


def k3_divergence(logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the k3 estimate of KL(π_θ‖π_ref) at each token, [B, T]: e^x − x − 1 ≥ 0 with x = log π_ref − log π_θ."""
    gap_BT = _masked(reference_logprobs_BT.detach() - logprobs_BT, mask_BT)
    return gap_BT.exp() - gap_BT - 1.0


def group_mean(values_B: Tensor, group_B: Tensor) -> Tensor:
    """Return the mean of each completion's group, [B]."""
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    total_K = values_B.new_zeros(groups).index_add_(0, group_B, values_B)
    return total_K[group_B] / _group_size(group_B)


def _group_size(group_B: Tensor) -> Tensor:
    return torch.bincount(group_B)[group_B]


def _tokens(mask_BT: Tensor) -> Tensor:
    return mask_BT.sum(dim=1).clamp_min(1)


def _squared(delta_B: Tensor, weight_B: Tensor, normalizer: float | None) -> tuple[Tensor, Metrics]:
    count = normalizer or len(delta_B)
    loss = (weight_B * delta_B.square()).sum() / count
    return loss, {
        "loss/objective": loss.detach(),
        "objective/delta_abs": delta_B.detach().abs().sum() / count,
    }


def _masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT.bool(), values_BT, torch.zeros_like(values_BT))
