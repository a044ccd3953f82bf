"""Recipes: their settings, how user settings override them, and how they are listed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pacedrl.cli import main
from pacedrl.config import Config, OptimizerConfig, dump_config, parse_config
from pacedrl.config.method import GFlowRlConfig, GrpoConfig, ReplayConfig, SelectionConfig
from pacedrl.errors import InputError
from pacedrl.recipes import RECIPES

NAMES = """
    grpo dr_grpo dapo gspo lilo mopps mapp bots greso pcl flowrl gflowrl tb tb_groupmean paced paced_closed paced_select
    paced_replay paced_noise paced_grpo paced_plus oracle
""".split()  # noqa: SIM905 - a column of names would be longer than the table below


def test_all_recipes_are_in_the_table() -> None:
    assert list(RECIPES) == NAMES


def test_the_defaults_are_the_papers_recipe() -> None:
    assert Config() == Config(recipe="paced")


# selection, estimator, gate, objective, replay, mini-batches, whether reference and log Z are needed
TABLE = {
    "grpo": ("uniform", "none", "none", "grpo", False, 1, False, False),
    "dr_grpo": ("uniform", "none", "none", "grpo", False, 1, False, False),
    "dapo": ("uniform", "none", "dynamic", "grpo", False, 16, False, False),
    "gspo": ("uniform", "none", "none", "grpo", False, 4, False, False),
    "lilo": ("uniform", "none", "lilo", "grpo", False, 1, False, False),
    "mopps": ("thompson", "counts", "none", "grpo", False, 1, False, False),
    "mapp": ("mapp", "counts", "none", "grpo", False, 1, False, False),
    "bots": ("thompson", "bots", "none", "grpo", False, 1, False, False),
    "greso": ("greso", "none", "dynamic", "grpo", False, 1, False, False),
    "pcl": ("nearest", "partition", "none", "grpo", False, 1, False, True),
    "flowrl": ("uniform", "none", "none", "flowrl", False, 1, True, True),
    "gflowrl": ("uniform", "none", "none", "gflowrl", False, 1, True, False),
    "tb": ("uniform", "partition", "none", "trajectory_balance", False, 1, False, True),
    "tb_groupmean": ("uniform", "none", "none", "trajectory_balance", False, 1, False, False),
    "paced": ("nearest", "partition", "none", "trajectory_balance", True, 1, False, True),
    "paced_closed": ("nearest", "partition", "none", "trajectory_balance", True, 1, False, True),
    "paced_select": ("nearest", "partition", "none", "trajectory_balance", False, 1, False, True),
    "paced_replay": ("uniform", "partition", "none", "trajectory_balance", True, 1, False, True),
    "paced_noise": ("noise", "partition", "none", "trajectory_balance", True, 1, False, True),
    "paced_grpo": ("nearest", "partition", "none", "grpo", False, 1, False, True),
    "paced_plus": ("thompson", "combined", "none", "trajectory_balance", True, 1, False, True),
    "oracle": ("nearest", "oracle", "none", "trajectory_balance", True, 1, False, True),
}


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_each_recipe(name: str) -> None:
    config = Config(recipe=name)
    assert TABLE[name] == (
        config.selection.method,
        config.estimator.name,
        config.gate.name,
        config.objective.name,
        config.replay.enabled,
        config.optimizer.mini_batches,
        config.objective.needs_reference,
        config.needs_partition,
    )


def test_only_ours_have_log_z_in_closed_form_and_paced_closed_differs_from_paced_in_nothing_else() -> None:
    assert [name for name in NAMES if Config(recipe=name).partition.name == "closed_form"] == [
        "paced_closed",
        "paced_plus",
    ]
    paced, closed = Config(recipe="paced"), Config(recipe="paced_closed")
    assert closed.model_copy(update={"recipe": "paced", "partition": paced.partition}) == paced


def test_pcl_selects_from_four_times_as_many_candidates() -> None:
    assert Config(recipe="pcl").selection.candidates == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "grpo",
            {"scale_by_std": True, "ratio": "token", "aggregation": "sequence_mean", "clip_low": 0.2, "clip_high": 0.2},
        ),
        ("dr_grpo", {"scale_by_std": False, "ratio": "token", "aggregation": "constant", "clip_high": 0.2}),
        (
            "dapo",
            {"scale_by_std": True, "ratio": "token", "aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.28},
        ),
        ("gspo", {"scale_by_std": True, "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4}),
        ("flowrl", {"beta": 1 / 15, "clip_low": 0.2, "clip_high": 0.2}),
        ("gflowrl", {"beta": 1 / 8, "weight_cap": 2.0, "gap_low": 0.2, "gap_high": 0.28}),
        ("tb_groupmean", {"beta": 0.05, "log_z": "group_mean"}),
        ("paced", {"beta": 0.05, "log_z": "learned"}),
        ("paced_plus", {"beta": 0.05, "log_z": "blended"}),
    ],
)
def test_values_from_the_papers(name: str, said: dict[str, Any]) -> None:
    objective = Config(recipe=name).objective.model_dump()
    assert {field: objective[field] for field in said} == said
    assert Config(recipe="lilo").gate.model_dump() == {"name": "lilo", "oversample": 4}
    assert Config(recipe="flowrl").partition.learning_rate is None
    assert Config(recipe="bots").estimator.model_dump() == {"name": "bots", "discount": 0.9, "implied_weight": 0.1}
    assert Config(recipe="greso").gate.model_dump() == {"name": "dynamic", "max_batches": 10, "adaptive_batch": True}
    assert Config(recipe="pcl").selection.candidates == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_resolved_recipe_reads_back_as_itself(name: str) -> None:
    config = Config(recipe=name)
    assert parse_config(yaml.safe_load(yaml.safe_dump(dump_config(config)))) == config


def test_user_settings_override_the_recipe() -> None:
    config = Config.model_validate(
        {"recipe": "dapo", "objective": {"clip_high": 0.5}, "optimizer": {"learning_rate": 1e-4}}
    )
    assert (config.objective.clip_high, config.objective.aggregation) == (0.5, "token_mean")
    assert (config.optimizer.mini_batches, config.optimizer.learning_rate) == (16, 1e-4)


def test_another_variant_ignores_the_recipes_values() -> None:
    config = Config.model_validate({"recipe": "dapo", "objective": {"name": "gflowrl"}})
    assert config.objective.name == "gflowrl"
    assert config.gate.name == "dynamic"


def test_section_objects_override_only_the_fields_set_on_them() -> None:
    config = Config(recipe="dapo", optimizer=OptimizerConfig(learning_rate=1e-5), objective=GrpoConfig(clip_high=0.4))
    assert (config.optimizer.mini_batches, config.optimizer.learning_rate) == (16, 1e-5)
    assert (config.objective.aggregation, config.objective.clip_high) == ("token_mean", 0.4)
    assert Config(recipe="paced_plus", selection=SelectionConfig(cooldown_steps=5)).selection.retain_fraction == 1 / 16
    assert not Config(recipe="grpo", replay=ReplayConfig(capacity=4)).replay.enabled
    assert Config(recipe="dapo", objective=GFlowRlConfig()).objective == GFlowRlConfig()


def test_setting_the_buffer_size_does_not_enable_replay() -> None:
    assert not Config.model_validate({"recipe": "tb", "replay": {"capacity": 32}}).replay.enabled


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"recipe": "grp"}, "there is no recipe 'grp': did you mean 'grpo'?"),
        ({"recipe": 3}, "there is no recipe '3': there are grpo, dr_grpo"),
        ({"recipe": "grpo", "replay": {"enabled": True}}, "replay.enabled: replay, on in recipe 'grpo'"),
        ({"recipe": "tb_groupmean", "replay": {"enabled": True}}, "replay.enabled: replay, on"),
        ({"recipe": "grpo", "selection": {"method": "nearest"}}, "selection.method: 'nearest' needs an estimator"),
        ({"selection": {"method": "thompson"}}, "selection.method: 'thompson' needs a posterior"),
        (
            {"recipe": "paced_plus", "partition": {"z_score_rewards": True}},
            "partition.z_score_rewards: needs trajectory balance",
        ),
        ({"objective": {"log_z": "blended"}}, "objective.log_z: 'blended' needs a posterior"),
        ({"objective": {"name": "tb"}}, "objective.name: unknown 'tb'; expected one of 'trajectory_balance', 'grpo'"),
        ({"objective": {"clip_low": 0.1}}, "unknown key 'objective.clip_low' of objective.name = trajectory_balance"),
        ({"recipe": "grpo", "objective": {"clip_lo": 0.1}}, "did you mean 'objective.clip_low'?"),
        ({"recipe": "grpo", "objective": {"clip_low": -1}}, "objective.clip_low: expected at least 0, got -1"),
        ({"recipe": "paced_plus", "estimator": {"discont": 1}}, "did you mean 'estimator.discount'?"),
        ({"partition": {"name": "closed_form", "discont": 1}}, "did you mean 'partition.discount'?"),
        (
            {"recipe": "paced_plus", "partition": {"fit_steps": 1}},
            "'partition.fit_steps' of partition.name = closed_form",
        ),
        (
            {"recipe": "paced_plus", "estimator": {"prior_strength": "x"}},
            "estimator.prior_strength: expected a number",
        ),
        ({"gate": {"oversample": 3}}, "unknown key 'gate.oversample' of gate.name = none"),
        (
            {"recipe": "flowrl", "estimator": {"name": "partition"}},
            "fits log Z to z-scored rewards, which do not show it",
        ),
        ({"objective": {"name": "grpo"}}, "replay.enabled: replay, on in recipe 'paced' or in the config, needs"),
        ({"gate": {"name": "lilo", "oversample": 1}}, "gate.oversample: expected at least 2, got 1"),
    ],
)
def test_invalid_combinations_are_refused_in_one_line(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_config(tree, "c.yaml")
    assert str(error.value).startswith("c.yaml: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_list_has_one_line_per_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(RECIPES[name].paper in line for name, line in zip(NAMES, lines, strict=True))


def test_the_complete_configuration_of_a_recipe_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "gspo"]) == 0
    assert parse_config(yaml.safe_load(capsys.readouterr().out)) == Config(recipe="gspo")
    assert main(["recipes", "gsp"]) == 2
    assert "did you mean 'gspo'?" in capsys.readouterr().err
