"""GFlowRL: FlowRL with the group's own log Z in place of a learned one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pacedrl.config.method import GFlowRlConfig
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import group_flow_balance, group_mean_log_z, trajectory_balance_advantage
from pacedrl.method.objectives import Metrics
from pacedrl.training.objectives.base import (
    LossInputs,
    Objective,
    group_index,
    mean_reference_log_ratio,
    rewards_to_train_on,
)
from pacedrl.types import Completion


class GFlowRl(Objective[GFlowRlConfig]):
    """GFlowRL, arXiv 2607.13394 (`pacedrl.method.objectives.group_flow_balance`)."""

    def advantages(self, fresh: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        """Return the negative flow gap r/β − log Z − mean_t(log π_old − log π_ref), which `loss` clips."""
        group_B, reward_B = group_index([c.key for c in fresh]), rewards_to_train_on(fresh)
        log_ratio_B = torch.tensor([mean_reference_log_ratio(c) for c in fresh])
        log_z_B = group_mean_log_z(reward_B, group_B, self.beta, log_ratio_B)
        return trajectory_balance_advantage(reward_B, log_z_B, self.beta) - log_ratio_B

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        return group_flow_balance(
            inputs.logprobs_BT,
            inputs.anchor_logprobs_BT,
            inputs.mask_BT,
            inputs.advantage_B,
            weight_cap=self.settings.weight_cap,
            gap_low=self.settings.gap_low,
            gap_high=self.settings.gap_high,
            normalizer=inputs.batch_sequences,
        )
