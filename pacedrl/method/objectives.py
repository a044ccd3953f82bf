"""Losses of the policy: pure functions from log-probabilities and advantages to (loss, metrics).

Shapes: ``_B`` sequences, ``_T`` completion tokens (right-padded; ``mask_BT`` is 1 on real tokens, 0 on padding).
Loss and metrics are sums over the sequences given, divided by ``normalizer``, so that those of micro-batches add up
to those of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalar tensors without gradient."""


def trajectory_balance_advantage(reward_B: Tensor, log_z_B: Tensor, beta: float) -> Tensor:
    """A(x, y) = r/β − log Z(x), all the policy needs to know of reward and partition function.

    ``reward_B`` is raw, in [0, 1]: z-scoring it first would leave log Z nothing to learn of difficulty.
    """
    return reward_B / beta - log_z_B


def trajectory_balance(
    logprobs_BT: Tensor,
    anchor_logprobs_BT: Tensor,
    mask_BT: Tensor,
    advantage_B: Tensor,
    normalizer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Trajectory balance against the behaviour policy: mean of δ², δ = Σ_t (log π_θ − log μ)_t − A.

    PACED-RL, arXiv 2602.12642, with μ = π_old and A = r/β − log Z_φ(x) (`trajectory_balance_advantage`).
    Departures: log Z enters through A as a constant, since φ is fitted apart, on its own timescale
    (`pacedrl.method.partition`); the two gradients, 2δ·∇log π_θ and 2δ, are the paper's joint ones.
    Log-probabilities are summed over tokens, not averaged as in FlowRL.

    Gradient flows into ``logprobs_BT`` alone. ``normalizer`` is the number of sequences in the whole batch
    (default: in this one). Metrics: ``loss/objective``, ``kl/old`` (the estimate of KL(μ‖π_θ), in nats a sequence)
    and ``objective/delta_abs``.
    """
    count = float(len(advantage_B)) if normalizer is None else normalizer
    log_ratio_B = sequence_log_ratio(logprobs_BT, anchor_logprobs_BT, mask_BT)
    delta_B = log_ratio_B - advantage_B.detach()
    loss = delta_B.square().sum() / count
    return loss, {
        "loss/objective": loss.detach(),
        "kl/old": -log_ratio_B.detach().sum() / count,
        "objective/delta_abs": delta_B.detach().abs().sum() / count,
    }


def sequence_log_ratio(logprobs_BT: Tensor, anchor_logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Σ_t (log π_θ − log μ)_t over real tokens, shape [B]; gradient flows into ``logprobs_BT`` alone.

    Padding may hold anything, infinities included: it is masked out, not multiplied by zero.
    """
    difference_BT = logprobs_BT - anchor_logprobs_BT.detach()
    return torch.where(mask_BT.bool(), difference_BT, torch.zeros_like(difference_BT)).sum(dim=-1)
