"""Which settings a resumed run may change, and which it must keep."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from pacedrl.config import Config, parse_config
from pacedrl.config.base import MAY_CHANGE, Section, changes

FREE = {
    "Config": "scale verifier eval checkpoint tracking versions",
    "RunConfig": "dir steps max_rollouts device deterministic samples_per_step",
    "ModelConfig": "name gguf_file trust_remote_code attn_implementation",
    "DataConfig": "train eval overlong",
    "SamplingConfig": "max_prompt_tokens batch_size servers server_timeout_s server_patience_s gpu_memory",
    "OptimizerConfig": "tokens_per_micro_batch gradient_checkpointing",
}
"""Names and paths of model and data are free, because a resumed run compares their contents instead."""
KEPT = {
    "Config": "recipe",
    "RunConfig": "seed",
    "LoraConfig": "r alpha target_modules",
    "RewardConfig": "overlong_buffer overlong_penalty",
    "SamplingConfig": "prompts_per_step group_size temperature top_p max_new_tokens stop engine ahead",
    "TrajectoryBalanceConfig": "name beta log_z",
    "GrpoConfig": "name scale_by_std ratio aggregation clip_low clip_high kl_coefficient sampler_weight_cap",
    "FlowRlConfig": "name beta clip_low clip_high",
    "GFlowRlConfig": "name beta weight_cap gap_low gap_high",
    "SelectionConfig": "method target_accuracy explore_fraction retain_fraction candidates cooldown_steps",
    "PartitionEstimatorConfig": "name",
    "CountsEstimatorConfig": "name discount",
    "CombinedEstimatorConfig": "name discount prior_strength",
    "BotsEstimatorConfig": "name discount implied_weight",
    "OracleEstimatorConfig": "name",
    "NoEstimatorConfig": "name",
    "NoGateConfig": "name",
    "DynamicGateConfig": "name max_batches adaptive_batch",
    "LiloGateConfig": "name oversample",
    "MlpPartitionConfig": "name learning_rate weight_decay fit_steps hidden_size dropout prior_accuracy embedding "
    "layer z_score_rewards",
    "ClosedFormPartitionConfig": "name discount components features length_scale prior_accuracy embedding layer "
    "z_score_rewards",
    "ReplayConfig": "enabled capacity admit max_age anchor train_partition",
    "OptimizerConfig": "learning_rate weight_decay betas schedule warmup_steps mini_batches epochs max_grad_norm",
}


def sections(model: type[Section]) -> Iterator[type[Section]]:
    """All section classes in ``model`` that are not free as a whole."""
    yield model
    for field in model.model_fields.values():
        if MAY_CHANGE not in field.metadata:
            for inner in _inner(field.annotation):
                yield from sections(inner)


def _inner(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _inner(part)


@pytest.mark.parametrize("model", list(sections(Config)), ids=lambda model: model.__name__)
def test_every_setting_is_listed_as_free_or_kept(model: type[Section]) -> None:
    """Add a new setting to one of the tables above; the type of a free setting is Free[...]."""
    free, kept = FREE.get(model.__name__, "").split(), KEPT.get(model.__name__, "").split()
    settings = {name for name, field in model.model_fields.items() if not list(_inner(field.annotation))}
    assert settings <= {*free, *kept}, f"list these in FREE or KEPT: {settings - {*free, *kept}}"
    before = model()
    for name in free:
        assert list(changes(before, before.model_copy(update={name: "other"}))) == [], name
    for name in kept:
        changed = before.model_copy(update={name: "other"})
        assert list(changes(before, changed)) == [(name, getattr(before, name), "other")], name


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"model": {"lora": {"r": 4}}}, ("model.lora", None, {"r": 4, "alpha": 32, "target_modules": "all-linear"})),
        ({"gate": {"name": "lilo"}}, ("gate.name", "none", "lilo")),
        ({"optimizer": {"betas": [0.9, 0.95]}}, ("optimizer.betas", (0.9, 0.999), (0.9, 0.95))),
    ],
)
def test_changes_have_the_name_and_both_values(now: dict[str, Any], expected: tuple[str, Any, Any]) -> None:
    assert list(changes(Config(), parse_config(now))) == [expected]
