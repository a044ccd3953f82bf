"""The GRPO family: a group-relative advantage and a clipped importance ratio."""

from collections.abc import Sequence

from torch import Tensor

from pacedrl.config.method import GrpoConfig
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import clipped_policy_gradient, group_relative_advantage
from pacedrl.method.objectives import Metrics
from pacedrl.training.objectives.base import LossInputs, Objective, group_index, rewards_to_train_on
from pacedrl.types import Completion


class Grpo(Objective[GrpoConfig]):
    """GRPO, Dr. GRPO, DAPO's and GSPO's loss, by settings (`pacedrl.method.objectives.clipped_policy_gradient`).

    The ratio is against the trainer's own π_old: the clip range may be as narrow as the gap to the sampler's.
    """

    anchored_to_trainer = True

    def advantages(self, fresh: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        group_B = group_index([c.key for c in fresh])
        return group_relative_advantage(rewards_to_train_on(fresh), group_B, self.settings.scale_by_std)

    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        lengths = {
            "sequence_mean": None,
            "token_mean": inputs.batch_tokens / inputs.batch_sequences,
            "constant": self.config.sampling.max_new_tokens,
        }
        return clipped_policy_gradient(
            inputs.logprobs_BT,
            inputs.anchor_logprobs_BT,
            inputs.mask_BT,
            inputs.advantage_B,
            clip_low=self.settings.clip_low,
            clip_high=self.settings.clip_high,
            ratio=self.settings.ratio,
            length=lengths[self.settings.aggregation],
            kl_coefficient=self.settings.kl_coefficient,
            reference_logprobs_BT=inputs.reference_logprobs_BT,
            sampler_logprobs_BT=inputs.sampler_logprobs_BT,
            sampler_weight_cap=self.settings.sampler_weight_cap,
            normalizer=inputs.batch_sequences,
        )
