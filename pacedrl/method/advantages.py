"""From rewards to advantages: one number a completion, all that the policy needs to know of reward and baseline.

``group_B`` numbers the group (prompt) that each completion belongs to, from 0; groups may differ in size, since
completions that could not be judged are left out. ``reward_B`` is raw, in [0, 1]. Nothing here carries gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

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


def group_mean(values_B: Tensor, group_B: Tensor) -> Tensor:
    """Each completion's group mean, [B]."""
    groups = int(group_B.max()) + 1 if len(group_B) else 0
    total_K = torch.zeros(groups, dtype=values_B.dtype).index_add_(0, group_B, values_B)
    return total_K[group_B] / _group_size(group_B)


def _group_size(group_B: Tensor) -> Tensor:
    return torch.bincount(group_B)[group_B]
