"""The whole configuration of a run."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from pacedrl.config.base import Free, Section
from pacedrl.config.method import (
    POSTERIORS,
    EstimatorConfig,
    GateConfig,
    MlpPartitionConfig,
    NoGateConfig,
    ObjectiveConfig,
    PartitionConfig,
    PartitionEstimatorConfig,
    ReplayConfig,
    SelectionConfig,
    TrajectoryBalanceConfig,
)
from pacedrl.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    ScaleConfig,
    TrackingConfig,
    VerifierConfig,
)
from pacedrl.recipes import DEFAULT_RECIPE, with_recipe


class Config(Section):
    """The configuration of a run: the user's settings, else the recipe's (`pacedrl.recipes`), else the defaults."""

    recipe: str = DEFAULT_RECIPE
    """Name of the method, which stands for a set of settings; user settings override the recipe. `pacedrl recipes`
    lists all recipes."""
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = TrajectoryBalanceConfig()
    selection: SelectionConfig = SelectionConfig()
    estimator: EstimatorConfig = PartitionEstimatorConfig()
    gate: GateConfig = NoGateConfig()
    partition: PartitionConfig = MlpPartitionConfig()
    replay: ReplayConfig = ReplayConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    scale: Free[ScaleConfig] = ScaleConfig()
    verifier: Free[VerifierConfig] = VerifierConfig()
    eval: Free[EvalConfig] = EvalConfig()
    checkpoint: Free[CheckpointConfig] = CheckpointConfig()
    tracking: Free[TrackingConfig] = TrackingConfig()
    versions: Free[dict[str, str]] = {}
    """Versions of Python and of the main packages, recorded in the run's config.yaml. Ignored when read."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_recipe(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        return with_recipe({name: _set_fields(value) for name, value in tree.items()})

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.reward.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"reward.overlong_buffer: {self.reward.overlong_buffer} is more than sampling.max_new_tokens "
                f"({self.sampling.max_new_tokens})"
            )
        objective, estimator, selection = self.objective, self.estimator.name, self.selection
        if selection.explore_fraction + selection.retain_fraction > 1.0:
            raise ValueError(
                f"selection.explore_fraction: {selection.explore_fraction:g} and selection.retain_fraction "
                f"({selection.retain_fraction:g}) are together more than 1"
            )
        if selection.method in ("nearest", "thompson", "learnability", "mapp") and estimator == "none":
            raise ValueError(f"selection.method: '{selection.method}' needs an estimator; set estimator.name")
        if not self.has_posterior:
            remedy = "set estimator.name to counts or combined, or to partition with partition.name=closed_form"
            if selection.method == "thompson":
                raise ValueError(f"selection.method: 'thompson' needs a posterior; {remedy}")
            if objective.needs_posterior:
                raise ValueError(f"objective.log_z: 'blended' needs a posterior; {remedy}")
        if not objective.log_z_is_accuracy and estimator in ("partition", "combined"):
            raise ValueError(
                f"estimator.name: '{estimator}' estimates accuracy from log Z, but this objective fits log Z to "
                "z-scored rewards, which do not show it; set estimator.name to counts or none"
            )
        if self.partition.z_score_rewards and not (objective.reads_log_z and objective.log_z_is_accuracy):
            raise ValueError(
                "partition.z_score_rewards: needs trajectory balance with objective.log_z=learned; set it to false"
            )
        if self.sampling.ahead and estimator == "oracle":
            raise ValueError("sampling.ahead: the oracle needs the accuracies of the current policy; set it to false")
        if self.sampling.ahead and self.run.deterministic:
            raise ValueError(
                "run.deterministic: cannot be combined with sampling.ahead, which samples during the update: torch has "
                "no deterministic algorithms for sampling; set one of them to false"
            )
        if (self.sampling.engine == "vllm_server") != bool(self.sampling.servers):
            raise ValueError("sampling.servers: list servers if, and only if, sampling.engine=vllm_server")
        if self.replay.enabled and (not objective.can_replay or estimator == "none"):
            raise ValueError(
                f"replay.enabled: replay, on in recipe '{self.recipe}' or in the config, needs trajectory balance "
                "with a learned or blended log Z, and an estimator; set replay.enabled=false"
            )
        return self

    @property
    def has_posterior(self) -> bool:
        """Whether the estimator gives a distribution of a prompt's accuracy, not only a point estimate."""
        closed_form = self.estimator.name == "partition" and self.partition.name == "closed_form"
        return closed_form or self.estimator.name in POSTERIORS

    @property
    def needs_partition(self) -> bool:
        """Whether the objective or the estimator uses log Z_φ."""
        return self.objective.reads_log_z or self.estimator.name in ("partition", "combined")


def _set_fields(value: Any) -> Any:
    """A section object as a mapping of the fields that were set on it, so that the recipe fills in the others."""
    if not isinstance(value, Section):
        return value
    fields = value.model_dump(exclude_unset=True)
    return {"name": value.name} | fields if hasattr(value, "name") else fields
