"""FlowRL: length-normalised trajectory balance to the initial policy, with z-scored rewards."""

import math
from collections.abc import Sequence

from torch import Tensor

from pacedrl.config.method import FlowRlConfig
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import flow_balance, trajectory_balance_advantage
from pacedrl.method.objectives import Metrics
from pacedrl.training.objectives.base import (
    LossInputs,
    Objective,
    mean_reference_log_ratio,
    rewards_to_train_on,
    standardised,
)
from pacedrl.types import Completion


class FlowRl(Objective[FlowRlConfig]):
    """FlowRL, arXiv 2509.15207 (`pacedrl.method.objectives.flow_balance`)."""

    def advantages(self, fresh: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        score_B = standardised(fresh, rewards_to_train_on(fresh))
        return trajectory_balance_advantage(score_B, scheduler.log_z([c.key for c in fresh]), self.beta)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        assert inputs.reference_logprobs_BT is not None
        return flow_balance(
            inputs.logprobs_BT,
            inputs.anchor_logprobs_BT,
            inputs.reference_logprobs_BT,
            inputs.mask_BT,
            inputs.advantage_B,
            clip_low=self.settings.clip_low,
            clip_high=self.settings.clip_high,
            normalizer=inputs.batch_sequences,
        )

    def partition_targets(self, sampled: Sequence[Completion]) -> tuple[list[float], list[float] | None]:
        """log Z is fitted to z-scored rewards and mean_t(log π_θ − log π_ref), of the completions trained on."""
        log_ratios, scores = [0.0] * len(sampled), standardised(sampled, rewards_to_train_on(sampled)).tolist()
        for i, c in enumerate(sampled):
            if c.log_ratio is None:
                scores[i] = math.nan
            else:
                log_ratios[i] = c.log_ratio / len(c.token_ids) + mean_reference_log_ratio(c)
        return log_ratios, scores
