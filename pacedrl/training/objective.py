"""The configured objective: its advantages and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pacedrl.config import (
    FlowRlConfig,
    GFlowRlConfig,
    GrpoConfig,
    ObjectiveConfig,
    TrajectoryBalanceConfig,
)
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import (
    blended_baseline,
    clipped_policy_gradient,
    flow_balance,
    group_flow_balance,
    group_mean_log_z,
    group_relative_advantage,
    trajectory_balance,
    trajectory_balance_advantage,
)
from pacedrl.method.objectives import Metrics


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch as the losses of `pacedrl.method.objectives` take it; gradient flows into ``logprobs_BT`` alone.

    ``sampler_logprobs_BT`` are the sampler's, the anchor's where it is the sampler's; ``reference_logprobs_BT`` is None
    where the objective reads none.
    """

    logprobs_BT: Tensor
    anchor_logprobs_BT: Tensor
    mask_BT: Tensor
    advantage_B: Tensor
    sampler_logprobs_BT: Tensor
    reference_logprobs_BT: Tensor | None = None


@dataclass(frozen=True)
class BatchSize:
    """Sequences and completion tokens of the whole batch that one optimiser step is taken on."""

    sequences: int
    tokens: int


def policy_loss(
    objective: ObjectiveConfig, max_new_tokens: int, inputs: LossInputs, batch: BatchSize
) -> tuple[Tensor, Metrics]:
    """The micro-batch's share of the loss and of the metrics: over the whole batch they add up."""
    tensors = (inputs.logprobs_BT, inputs.anchor_logprobs_BT)
    reference_BT, mask_BT, advantage_B = inputs.reference_logprobs_BT, inputs.mask_BT, inputs.advantage_B
    match objective:
        case TrajectoryBalanceConfig():
            return trajectory_balance(*tensors, mask_BT, advantage_B, batch.sequences)
        case GrpoConfig():
            lengths = {"sequence_mean": None, "token_mean": batch.tokens / batch.sequences, "constant": max_new_tokens}
            return clipped_policy_gradient(
                *tensors,
                mask_BT,
                advantage_B,
                clip_low=objective.clip_low,
                clip_high=objective.clip_high,
                ratio=objective.ratio,
                length=lengths[objective.aggregation],
                kl_coefficient=objective.kl_coefficient,
                reference_logprobs_BT=reference_BT,
                sampler_logprobs_BT=inputs.sampler_logprobs_BT,
                sampler_weight_cap=objective.sampler_weight_cap,
                normalizer=batch.sequences,
            )
        case FlowRlConfig():
            assert reference_BT is not None
            return flow_balance(
                *tensors,
                reference_BT,
                mask_BT,
                advantage_B,
                clip_low=objective.clip_low,
                clip_high=objective.clip_high,
                normalizer=batch.sequences,
            )
        case GFlowRlConfig():
            assert reference_BT is not None
            return group_flow_balance(
                *tensors,
                reference_BT,
                mask_BT,
                advantage_B,
                weight_cap=objective.weight_cap,
                gap_raise=objective.gap_raise,
                gap_lower=objective.gap_lower,
                normalizer=batch.sequences,
            )


def fresh_advantages(
    objective: ObjectiveConfig,
    scheduler: Scheduler,
    keys: Sequence[str],
    reward_B: Tensor,
    old_log_ratio_B: Tensor,
) -> Tensor:
    """One advantage a judged completion, [B]. ``old_log_ratio_B`` is mean_t(log π_old − log π_ref), 0 where unused."""
    group_B = group_index(keys)
    match objective:
        case TrajectoryBalanceConfig(log_z="learned"):
            return scheduler.advantage(keys, reward_B)
        case TrajectoryBalanceConfig(log_z="group_mean"):
            log_z_B = group_mean_log_z(reward_B, group_B, objective.beta)
        case TrajectoryBalanceConfig():
            estimate_B = torch.from_numpy(scheduler.accuracy_estimate(keys)).float()
            strength_B = torch.from_numpy(scheduler.estimate_strength(keys)).float()
            log_z_B = blended_baseline(reward_B, group_B, estimate_B, strength_B) / objective.beta
        case GrpoConfig():
            return group_relative_advantage(reward_B, group_B, objective.scale_by_std)
        case FlowRlConfig():
            return trajectory_balance_advantage(
                group_relative_advantage(reward_B, group_B), scheduler.log_z(keys), objective.beta
            )
        case GFlowRlConfig():
            log_z_B = group_mean_log_z(reward_B, group_B, objective.beta, old_log_ratio_B)
    return trajectory_balance_advantage(reward_B, log_z_B, objective.beta)


def replayed_advantages(
    objective: ObjectiveConfig, scheduler: Scheduler, keys: Sequence[str], reward_B: Tensor
) -> Tensor:
    """Of replayed completions, which have no group beside them: the estimate alone is their baseline, [B].

    By now it has seen these completions, as log Z has in the paper's recipe.
    """
    assert isinstance(objective, TrajectoryBalanceConfig)  # Config refuses replay with any other
    if objective.log_z == "learned":
        return scheduler.advantage(keys, reward_B)
    log_z_B = torch.from_numpy(scheduler.accuracy_estimate(keys)).float() / objective.beta
    return trajectory_balance_advantage(reward_B, log_z_B, objective.beta)


def group_index(keys: Sequence[str]) -> Tensor:
    """Numbers the distinct keys from 0 in order of first appearance: int64 [B]."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.long)
