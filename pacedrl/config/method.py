"""Settings of the method: objective, selection, estimator, gate, log Z, replay.

The defaults are the paper's recipe (arXiv 2602.12642); `pacedrl.recipes` has the others. A field's docstring says so
where the paper does not state a value.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pacedrl.config.base import NonNegative, Positive, Probability, Section

POSTERIORS = ("counts", "combined", "bots")
"""Estimators that always give a distribution of a prompt's accuracy, not only a point estimate. ``partition`` gives one
if log Z is in closed form."""


class ObjectiveSection(Section):
    """Properties of an objective that other parts depend on; `pacedrl.training.objectives` computes its loss."""

    log_z_is_accuracy: ClassVar[bool] = True
    """Whether β·log Z, fitted alongside this objective, estimates accuracy."""

    @property
    def partition_beta(self) -> float:
        """β of the log Z fitted alongside this objective. Objectives without β may use any: only β·log Z is read."""
        return float(getattr(self, "beta", 0.05))

    @property
    def reads_log_z(self) -> bool:
        """Whether the loss reads the learned log Z."""
        return False

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
        """Whether a replayed completion, which has no group, has an advantage."""
        return False


class TrajectoryBalanceConfig(ObjectiveSection):
    """Trajectory balance with the behaviour policy as the reference (PACED-RL)."""

    name: Literal["trajectory_balance"] = "trajectory_balance"
    beta: Annotated[float, Field(gt=0.0)] = 0.05
    """β, the temperature of the KL-regularised objective. Rewards are divided by β, and β·log Z(x) estimates the
    policy's accuracy on prompt x."""
    log_z: Literal["learned", "group_mean", "blended"] = "learned"
    """The baseline. ``learned``: log Z_φ, a network's output for the prompt (the paper). ``group_mean``: estimated from
    the completions of the group (VarGrad). ``blended``: the accuracy estimate and the mean reward of the group's other
    completions, weighted by their inverse variances (ours); needs ``estimator.name`` counts or combined."""

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
    """GRPO and its variants: a group-relative advantage and a clipped importance ratio."""

    name: Literal["grpo"] = "grpo"
    scale_by_std: bool = True
    """Divide the advantage by the standard deviation of the group's rewards. Dr. GRPO sets false."""
    ratio: Literal["token", "sequence"] = "token"
    """One importance ratio per token, or one per sequence (GSPO)."""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """How token losses are averaged: within each sequence, then over sequences (``sequence_mean``); over all tokens of
    the batch (``token_mean``, DAPO); or each sequence's sum divided by ``sampling.max_new_tokens``, then averaged over
    sequences (``constant``, Dr. GRPO)."""
    clip_low: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Lower bound of the importance ratio's clip range [1 − clip_low, 1 + clip_high]."""
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2
    """Upper bound of the importance ratio's clip range [1 − clip_low, 1 + clip_high]."""
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Coefficient of the KL penalty towards the initial policy (k3 estimator). Above 0, each step also runs a forward
    pass of the initial policy. The GRPO paper uses 0.04, later work 0."""
    sampler_weight_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Upper bound of the importance weight π_old/π_sampler per token, which corrects for a sampler whose
    log-probabilities differ from the trainer's (vLLM)."""

    @property
    def needs_reference(self) -> bool:
        return self.kl_coefficient > 0.0


class FlowRlConfig(ObjectiveSection):
    """FlowRL: length-normalised trajectory balance with the initial policy as the reference and z-scored rewards."""

    log_z_is_accuracy: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = True
    reads_log_z: ClassVar[bool] = True

    name: Literal["flowrl"] = "flowrl"
    beta: Annotated[float, Field(gt=0.0)] = 1 / 15
    """β: rewards are divided by it. FlowRL's paper multiplies them by its β = 15, which is 1/15 here."""
    clip_low: Probability = 0.2
    """Lower bound of the clip range [1 − clip_low, 1 + clip_high] of the importance weight, a ratio of whole
    completions. The authors' newer code has no lower bound (1 here)."""
    clip_high: Annotated[float, Field(ge=0.0)] = 0.2
    """Upper bound of the importance weight's clip range [1 − clip_low, 1 + clip_high]. The authors' newer code caps the
    weight at 10 (9 here)."""


class GFlowRlConfig(ObjectiveSection):
    """GFlowRL: FlowRL with log Z estimated from the group, and a clipped flow gap."""

    needs_reference: ClassVar[bool] = True

    name: Literal["gflowrl"] = "gflowrl"
    beta: Annotated[float, Field(gt=0.0)] = 1 / 8
    """β: rewards are divided by it. The paper multiplies them by its β, best at 8 of 1 to 10, which is 1/8 here."""
    weight_cap: Annotated[float, Field(gt=0.0)] = 2.0
    """Upper bound of the importance weight, the geometric mean of the tokens' ratios π_θ/π_old."""
    gap_low: Annotated[float, Field(gt=0.0)] = 0.2
    """The flow gap is clipped to [−gap_low, gap_high], in nats per token. A negative gap raises the completion's
    probability. We assume that the clip range in the paper's table of settings, 0.2 and 0.28, is this one."""
    gap_high: Annotated[float, Field(gt=0.0)] = 0.28
    """Upper bound of the flow gap, in nats per token. A positive gap lowers the completion's probability."""


ObjectiveConfig = Annotated[
    TrajectoryBalanceConfig | GrpoConfig | FlowRlConfig | GFlowRlConfig, Field(discriminator="name")
]


class SelectionConfig(Section):
    """Which prompts are sampled next."""

    method: Literal["nearest", "uniform", "thompson", "learnability", "mapp", "greso", "noise"] = "nearest"
    """``nearest``: the prompts whose estimated accuracy is nearest to ``target_accuracy`` (the paper). ``uniform``: all
    prompts in shuffled epochs. ``thompson``: like nearest, with a draw from the posterior in place of the estimate.
    ``learnability``: the prompts with the highest p(1 − p). ``mapp``: those whose groups are most likely to have
    rewards that differ. ``greso``: like uniform, but prompts skip epochs if their last groups had equal rewards.
    ``noise``: random scores, as a control."""
    target_accuracy: Probability = 0.5
    """τ, the accuracy that ``nearest`` and ``thompson`` look for."""
    explore_fraction: Probability = 0.0
    """Fraction of each step's prompts drawn uniformly at random. The paper does not mention exploration, so 0."""
    retain_fraction: Probability = 0.0
    """Fraction of each step's prompts selected among those that were solved when last used, longest ago first. It keeps
    skills that selection by difficulty no longer visits (ours). Together with ``explore_fraction`` at most 1."""
    candidates: Positive | None = None
    """Select from this many times ``sampling.prompts_per_step`` prompts, drawn uniformly at each step, instead of from
    all (PCL). This explores, and a batch cannot fill with similar prompts. null: from all prompts (the paper)."""
    cooldown_steps: NonNegative = 0
    """Number of steps for which a prompt is not selected again after use. The paper does not mention a cooldown, so
    0."""


class PartitionEstimatorConfig(Section):
    """β·log Z(x), which generalises from the results of similar prompts (the paper)."""

    name: Literal["partition"] = "partition"


class CountsEstimatorConfig(Section):
    """A Beta posterior: a uniform prior, updated with the prompt's own results, older ones discounted (MoPPS)."""

    name: Literal["counts"] = "counts"
    discount: Probability = 0.5
    """Factor by which a prompt's older results are multiplied each time it is sampled."""


class CombinedEstimatorConfig(Section):
    """A Beta posterior: a prior with mean β·log Z, updated with the prompt's own discounted results (ours)."""

    name: Literal["combined"] = "combined"
    discount: Probability = 0.6
    """Factor by which a prompt's older results are multiplied each time it is sampled."""
    prior_strength: Annotated[float, Field(gt=0.0)] | None = 4.0
    """Weight of the prior, as a number of completions. null: estimated during training. With ``partition.name``
    closed_form it follows for each prompt from the variance of log Z; otherwise one number for all prompts follows from
    the error of log Z's estimates."""


class BotsEstimatorConfig(Section):
    """The Beta posterior of ``counts``, with implied evidence for the prompts that a step did not sample (BOTS)."""

    name: Literal["bots"] = "bots"
    discount: Probability = 0.9
    """Factor by which the older evidence on every prompt is multiplied at each step, the paper's 1 − λ."""
    implied_weight: Probability = 0.1
    """Weight of implied evidence, the paper's ρ. 0: only the prompt's own results count."""


class OracleEstimatorConfig(Section):
    """The policy's true accuracy, computed exactly. Only for tasks with one right answer (verifier ``exact``)."""

    name: Literal["oracle"] = "oracle"


class NoEstimatorConfig(Section):
    """No accuracy estimates, for methods that need none."""

    name: Literal["none"] = "none"


EstimatorConfig = Annotated[
    PartitionEstimatorConfig
    | CountsEstimatorConfig
    | CombinedEstimatorConfig
    | BotsEstimatorConfig
    | OracleEstimatorConfig
    | NoEstimatorConfig,
    Field(discriminator="name"),
]


class GateSection(Section):
    """Properties of a gate that other parts depend on."""

    @property
    def selection_factor(self) -> int:
        """Number of prompts selected at once, as a multiple of ``sampling.prompts_per_step``."""
        return 1

    @property
    def sampling_factor(self) -> int:
        """Maximum number of prompts that a step samples, as a multiple of ``sampling.prompts_per_step``."""
        return self.selection_factor


class NoGateConfig(GateSection):
    """No gate: a step trains on every group that it samples."""

    name: Literal["none"] = "none"


class DynamicGateConfig(GateSection):
    """Dynamic sampling (DAPO): drop groups whose rewards are all equal, and sample more prompts until
    ``sampling.prompts_per_step`` groups remain."""

    name: Literal["dynamic"] = "dynamic"
    max_batches: Positive = 10
    """Maximum number of batches, of up to ``sampling.prompts_per_step`` prompts each, that a step samples. If groups
    are still missing, the step logs a warning and trains on those it has."""
    adaptive_batch: bool = False
    """Let the later batches of a step contain only as many prompts as should fill it (GRESO): 1.25 times the number of
    missing groups, divided by the share of groups kept in the batch before."""

    @property
    def sampling_factor(self) -> int:
        return self.max_batches


class LiloGateConfig(GateSection):
    """Oversample, and train on the ``sampling.prompts_per_step`` groups with the highest p(1 − p) (LILO)."""

    name: Literal["lilo"] = "lilo"
    oversample: Annotated[int, Field(ge=2)] = 4
    """Oversampling factor: a step samples this many times ``sampling.prompts_per_step`` prompts."""

    @property
    def selection_factor(self) -> int:
        return self.oversample


GateConfig = Annotated[NoGateConfig | DynamicGateConfig | LiloGateConfig, Field(discriminator="name")]


class PartitionSection(Section):
    """Settings of every learned log Z."""

    prior_accuracy: Probability = 0.5
    """Accuracy estimate of every prompt before training."""
    embedding: Literal["mean", "last"] = "mean"
    """How a prompt is embedded: hidden states of the initial policy, averaged over the prompt's tokens (``mean``) or
    taken at its last token (``last``)."""
    z_score_rewards: bool = False
    """Fit log Z to rewards z-scored within their group, as FlowRL does. log Z then no longer estimates accuracy: only
    for an ablation."""


class MlpPartitionConfig(PartitionSection):
    """A multi-layer perceptron with its own optimiser (the paper). The paper states no settings; we tuned the
    defaults by experiment."""

    name: Literal["mlp"] = "mlp"
    learning_rate: Annotated[float, Field(gt=0.0)] | None = 2e-3
    """Learning rate of a weight matrix with fan-in 64; one with fan-in n uses 64/n times this rate. null: the policy's
    learning rate for all parameters (FlowRL)."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight decay of AdamW."""
    fit_steps: Positive = 4
    """Optimiser steps on each step's rollouts."""
    hidden_size: Positive | None = None
    """Width of the hidden layers. null: the width of the prompt embedding."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Dropout rate during fitting. Estimates are computed without dropout."""
    layer: Literal["middle", "last"] = "last"
    """Layer whose hidden states embed a prompt; ``middle`` is the one after half of the layers."""


class ClosedFormPartitionConfig(PartitionSection):
    """Bayesian linear regression on random Fourier features of the embeddings, solved in closed form (ours). It has no
    optimiser, and every estimate has a variance."""

    name: Literal["closed_form"] = "closed_form"
    discount: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Factor by which the weight of older results is multiplied at each step, because the policy changes."""
    components: Positive = 128
    """Number of principal components of the embeddings that are used."""
    features: Positive = 512
    """Number of random Fourier features. Time per step grows with its square, and with its product with the number of
    prompts."""
    length_scale: Annotated[float, Field(gt=0.0)] = 1.0
    """Length scale of the Gaussian kernel, as a multiple of the median distance between two prompts."""
    layer: Literal["middle", "last"] = "middle"
    """Layer whose hidden states embed a prompt; ``middle`` is the one after half of the layers."""


PartitionConfig = Annotated[MlpPartitionConfig | ClosedFormPartitionConfig, Field(discriminator="name")]


class ReplayConfig(Section):
    """Replay of correct completions, prioritised by the error of their prompt's accuracy estimate."""

    enabled: bool = True
    """Train on correct completions of earlier steps in addition to the fresh ones."""
    capacity: Positive = 128
    """Maximum number of completions in the buffer. When it is full, the oldest are removed."""
    admit: Positive = 64
    """Maximum number of a step's completions that enter the buffer, those with the highest priority first."""
    max_age: Positive = 8
    """Number of steps after which a completion is removed from the buffer. The paper does not state it."""
    anchor: Literal["behaviour", "current"] = "behaviour"
    """The anchor μ in the loss of a replayed completion: its log-probabilities when it was sampled (``behaviour``), or
    under the policy at the start of the step (``current``)."""
    train_partition: bool = False
    """Also fit log Z to replayed completions. They are all correct, so they bias log Z upwards."""
