"""Trajectory balance against the behaviour policy: PACED-RL's objective, and its variants of log Z."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pacedrl.config.method import TrajectoryBalanceConfig
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import blended_baseline, group_mean_log_z, trajectory_balance, trajectory_balance_advantage
from pacedrl.method.objectives import Metrics
from pacedrl.training.objectives.base import LossInputs, Objective, group_index, standardised
from pacedrl.types import Completion


class TrajectoryBalance(Objective[TrajectoryBalanceConfig]):
    """δ = Σ_t (log π_θ − log μ)_t − (r/β − log Z(x)), squared; μ is the policy that sampled (arXiv 2602.12642).

    log Z is learned, the group's mean (VarGrad), or the accuracy estimate blended with the group's other completions.
    """

    def advantages(self, fresh: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        keys, reward_B = [c.key for c in fresh], torch.tensor([c.total for c in fresh])
        match self.settings.log_z:
            case "learned":
                return scheduler.advantage(keys, reward_B)
            case "group_mean":
                log_z_B = group_mean_log_z(reward_B, group_index(keys), self.beta)
            case "blended":
                estimate_B = torch.from_numpy(scheduler.accuracy_estimate(keys)).float()
                strength_B = torch.from_numpy(scheduler.estimate_strength(keys)).float()
                log_z_B = blended_baseline(reward_B, group_index(keys), estimate_B, strength_B) / self.beta
        return trajectory_balance_advantage(reward_B, log_z_B, self.beta)

    def replayed_advantages(self, replayed: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        """Take the estimate alone as the baseline. It has seen these completions by now, as log Z has in the paper."""
        keys, reward_B = [c.key for c in replayed], torch.tensor([c.total for c in replayed])
        if self.settings.log_z == "learned":
            return scheduler.advantage(keys, reward_B)
        log_z_B = torch.from_numpy(scheduler.accuracy_estimate(keys)).float() / self.beta
        return trajectory_balance_advantage(reward_B, log_z_B, self.beta)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        return trajectory_balance(
            inputs.logprobs_BT, inputs.anchor_logprobs_BT, inputs.mask_BT, inputs.advantage_B, inputs.batch_sequences
        )

    def partition_targets(self, sampled: Sequence[Completion]) -> tuple[list[float], list[float] | None]:
        if self.settings.log_z != "learned":
            return super().partition_targets(sampled)
        log_ratios = [c.log_ratio or 0.0 for c in sampled]
        if not self.config.partition.z_score_rewards:
            return log_ratios, None
        reward_B = torch.tensor([math.nan if c.reward is None else c.reward for c in sampled])
        return log_ratios, standardised(sampled, reward_B).tolist()
