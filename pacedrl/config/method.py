"""Settings of the method: objective, selection, estimator, gate, log Z, replay.

The defaults ARE the paper's recipe (arXiv 2602.12642); `pacedrl.recipes` has the others. Where the paper is silent the
docstring of the field says so.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pacedrl.config.base import NonNegative, Positive, Probability, Section

POSTERIORS = ("counts", "combined")
"""Estimators that give a distribution, not only a number."""


class ObjectiveSection(Section):
    """What the rest of the configuration asks of an objective; `pacedrl.training.objectives` computes it."""

    @property
    def partition_beta(self) -> float:
        """β of the log Z that is fitted beside this objective. Without a β of its own, only β·log Z is read."""
        return 0.05

    @property
    def reads_log_z(self) -> bool:
        """Whether the loss reads the learned log Z."""
        return False

    @property
    def log_z_is_accuracy(self) -> bool:
        """Whether β·log Z, fitted beside this objective, estimates accuracy."""
        return True

    @property
    def needs_posterior(self) -> bool:
        """Whether the advantage needs an estimator that gives a distribution (`POSTERIORS`)."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads log-probabilities of the initial policy."""
        return False

    @property
    def can_replay(self) -> bool:
        """Whether a replayed completion, which has no group beside it, has an advantage."""
        return False


class TrajectoryBalanceConfig(ObjectiveSection):
    """Trajectory balance against the behaviour policy (PACED-RL)."""

    name: Literal["trajectory_balance"] = "trajectory_balance"
    beta: Annotated[float, Field(gt=0.0)] = 0.05
    """β, the temperature of the KL-regularised objective: rewards are divided by it, and β·log Z estimates accuracy."""
    log_z: Literal["learned", "group_mean", "blended"] = "learned"
    """``learned``: log Z_φ (the paper). ``group_mean``: the group's own (VarGrad). ``blended``: the accuracy estimate
    and the group's other completions, weighted by their variances (ours); wants an estimator with a posterior."""

    @property
    def partition_beta(self) -> float:
        return self.beta

    @property
    def reads_log_z(self) -> bool:
        return self.log_z == "learned"

    @property
    def needs_posterior(self) -> bool:
        return self.log_z == "blended"

    @property
    def can_replay(self) -> bool:
        return self.log_z != "group_mean"


class GrpoConfig(ObjectiveSection):
    """The GRPO family: a group-relative advantage and a clipped importance ratio."""

    name: Literal["grpo"] = "grpo"
    scale_by_std: bool = True
    """Divide the advantage by the group's standard deviation; Dr. GRPO does not."""
    ratio: Literal["token", "sequence"] = "token"
    """One importance ratio a token, or one a sequence (GSPO)."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """A sequence's token losses are divided by its length, by the batch's mean length (DAPO: the mean over all tokens)
    or by ``sampling.max_new_tokens`` (Dr. GRPO)."""
    clip_low: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """The importance ratio is clipped below at 1 less this."""
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2
    """And above at 1 plus this."""
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the k3 divergence from the initial policy; above 0 costs a forward pass of it. GRPO's paper used 0.04,
    later work 0."""
    sampler_weight_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Most that a token's loss is weighted by π_old/π_sampler, where sampler and trainer differ (vLLM)."""

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0.0


class FlowRlConfig(ObjectiveSection):
    """FlowRL: length-normalised trajectory balance to the initial policy, z-scored rewards."""

    name: Literal["flowrl"] = "flowrl"
    beta: Annotated[float, Field(gt=0.0)] = 1 / 15
    """The paper's own β, 15, is the inverse of ours."""
    clip_low: Probability = 0.2
    """The importance weight is clipped below at 1 less this."""
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2
    """And above at 1 plus this."""

    @property
    def partition_beta(self) -> float:
        return self.beta

    @property
    def reads_log_z(self) -> bool:
        return True

    @property
    def log_z_is_accuracy(self) -> bool:
        return False

    @property
    def needs_reference(self) -> bool:
        return True


class GFlowRlConfig(ObjectiveSection):
    """GFlowRL: FlowRL with the group's own log Z. The values are assumed; see `group_flow_balance`."""

    name: Literal["gflowrl"] = "gflowrl"
    beta: Annotated[float, Field(gt=0.0)] = 1 / 15
    """As FlowRL's."""
    weight_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Most that the importance weight may be."""
    gap_raise: Annotated[float, Field(gt=0.0)] = 10.0
    """Largest gap with which a completion's probability is raised, in nats a token."""
    gap_lower: Annotated[float, Field(gt=0.0)] = 5.0
    """Largest gap with which it is lowered."""

    @property
    def partition_beta(self) -> float:
        return self.beta

    @property
    def needs_reference(self) -> bool:
        return True


ObjectiveConfig = Annotated[
    TrajectoryBalanceConfig | GrpoConfig | FlowRlConfig | GFlowRlConfig, Field(discriminator="name")
]


class SelectionConfig(Section):
    """Which prompts next."""

    method: Literal["nearest", "uniform", "thompson", "learnability", "noise"] = "nearest"
    """``nearest``: the P with the smallest |estimate − target| (the paper). ``uniform``: shuffled epochs. ``thompson``:
    as nearest, with a draw from the posterior for the estimate. ``learnability``: the highest p(1 − p). ``noise``: a
    control."""
    target_accuracy: Probability = 0.5
    """τ: prompts whose estimate is nearest to it are selected, by ``nearest`` and ``thompson``."""
    explore_fraction: Probability = 0.0
    """Share of the batch drawn uniformly. The paper is silent; 0 is its letter."""
    cooldown_steps: NonNegative = 0
    """Steps a prompt rests after use. The paper is silent; 0 is its letter."""


class PartitionEstimatorConfig(Section):
    """β·log Z: what similar prompts did (the paper)."""

    name: Literal["partition"] = "partition"


class CountsEstimatorConfig(Section):
    """A flat Beta prior and the prompt's own discounted results (MoPPS)."""

    name: Literal["counts"] = "counts"
    discount: Probability = 0.5
    """What is left of older results at each visit."""


class CombinedEstimatorConfig(Section):
    """β·log Z as the mean of a Beta prior, the prompt's own discounted results as evidence (ours)."""

    name: Literal["combined"] = "combined"
    discount: Probability = 0.6
    """What is left of older results at each visit."""
    prior_strength: Annotated[float, Field(gt=0.0)] | None = 4.0
    """How many completions log Z's estimate is worth. null: learned from how far it is off."""


class OracleEstimatorConfig(Section):
    """The policy's true accuracy, computed: for tasks with one right answer (verifier ``exact``) only."""

    name: Literal["oracle"] = "oracle"


class NoEstimatorConfig(Section):
    """No estimates, for methods that need none."""

    name: Literal["none"] = "none"


EstimatorConfig = Annotated[
    PartitionEstimatorConfig
    | CountsEstimatorConfig
    | CombinedEstimatorConfig
    | OracleEstimatorConfig
    | NoEstimatorConfig,
    Field(discriminator="name"),
]


class GateSection(Section):
    """What the rest of the package asks of a gate."""

    @property
    def selection_factor(self) -> int:
        """Prompts selected at once, as a multiple of ``sampling.prompts_per_step``."""
        return 1

    @property
    def sampling_factor(self) -> int:
        """Prompts sampled in a step at most, as a multiple of ``sampling.prompts_per_step``."""
        return self.selection_factor


class NoGateConfig(GateSection):
    """Train on all that was sampled."""

    name: Literal["none"] = "none"


class DynamicGateConfig(GateSection):
    """Dynamic sampling (DAPO): drop groups whose rewards are all equal and sample more until P are left."""

    name: Literal["dynamic"] = "dynamic"
    max_batches: Positive = 10
    """Batches of P prompts sampled in a step at most; after that the step trains on what it has, and says so."""

    @property
    def sampling_factor(self) -> int:
        return self.max_batches


class LiloGateConfig(GateSection):
    """Oversample and keep the P groups with the highest p(1 − p) (LILO)."""

    name: Literal["lilo"] = "lilo"
    oversample: Annotated[int, Field(ge=2)] = 4
    """Times P prompts sampled in a step."""

    @property
    def selection_factor(self) -> int:
        return self.oversample


GateConfig = Annotated[NoGateConfig | DynamicGateConfig | LiloGateConfig, Field(discriminator="name")]


class PartitionConfig(Section):
    """The learned log partition function and its own optimiser (the paper states neither; these are measured)."""

    learning_rate: Annotated[float, Field(gt=0.0)] | None = 2e-3
    """Of a matrix with fan-in 64; one with fan-in n learns at 64/n of it. null: the policy's own, for all (FlowRL)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's."""
    fit_steps: Positive = 4
    """Optimiser steps on each batch of rollouts."""
    hidden_size: Positive | None = None
    """Width; the embedding's own unless given."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """While it is fitted; estimates are made without."""
    prior_accuracy: Probability = 0.5
    """Accuracy estimate of every prompt before anything was observed."""
    embedding: Literal["mean", "last"] = "mean"
    """Of a prompt: the initial policy's last hidden state, mean over its tokens or of the last one."""
    projection: Positive | None = None
    """Principal components of the embeddings that log Z reads; all of the embedding unless given. For very many
    prompts."""
    rescore_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the prompts whose estimate is computed anew each step; below 1 the others' are up to 1/share steps
    old."""
    z_score_rewards: bool = False
    """Fit log Z to rewards standardised in their group, as FlowRL does, and so to no accuracy: for an ablation."""


class ReplayConfig(Section):
    """Accuracy-estimation-error-prioritised replay of correct completions."""

    enabled: bool = True
    """Train on completions of earlier steps beside the fresh ones."""
    capacity: Positive = 128
    """Completions in the buffer."""
    admit: Positive = 64
    """Completions of a step that enter the buffer, by descending priority; the oldest leave when it is full."""
    max_age: Positive = 8
    """Steps after which a completion leaves whatever the buffer's fill (the paper is silent)."""
    anchor: Literal["behaviour", "current"] = "behaviour"
    """The μ of a replayed completion: its log-probs when it was sampled, or the policy's at the step's start."""
    train_partition: bool = False
    """Whether replayed completions also fit log Z; they are all correct, so they push it upwards."""
