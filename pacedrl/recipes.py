"""The table of methods: each recipe sets selection, estimator, gate, objective and replay.

A recipe is a set of values for the configuration. User settings override the recipe, and settings that the recipe does
not name keep their defaults. All recipes share the sampler, the learner and the schedule. Only dapo and gspo also set
``optimizer.mini_batches``, the number of optimiser steps per step, as their papers do; set it yourself to compare
recipes at equal numbers of optimiser steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pacedrl.errors import did_you_mean

Settings = dict[str, dict[str, Any]]

DEFAULT_RECIPE = "paced"


@dataclass(frozen=True)
class Recipe:
    """A method: its one-line summary, its source, and its settings by section of `pacedrl.config.Config`."""

    summary: str
    paper: str
    settings: Settings


PACED_RL = "arXiv 2602.12642"

# Selection of prompts, with the estimator that it uses.
UNIFORM: Settings = {"selection": {"method": "uniform"}, "estimator": {"name": "none"}, "gate": {"name": "none"}}
UNIFORM_WITH_Z: Settings = UNIFORM | {"estimator": {"name": "partition"}}
NEAREST: Settings = {"selection": {"method": "nearest"}, "estimator": {"name": "partition"}, "gate": {"name": "none"}}

# Objective, with or without replay.
GRPO: Settings = {"objective": {"name": "grpo"}, "replay": {"enabled": False}}
BALANCE: Settings = {"objective": {"name": "trajectory_balance"}, "replay": {"enabled": False}}
BALANCE_WITH_REPLAY: Settings = {"objective": {"name": "trajectory_balance"}, "replay": {"enabled": True}}

# log Z: the paper's, unless the recipe says otherwise.
MLP: Settings = {"partition": {"name": "mlp"}}
CLOSED_FORM: Settings = {"partition": {"name": "closed_form"}}

RECIPES: dict[str, Recipe] = {
    "grpo": Recipe("z-scored group advantage, clipped ratio, uniform prompts", "arXiv 2402.03300", UNIFORM | GRPO),
    "dr_grpo": Recipe(
        "GRPO without the std and length biases: centred advantage, division by a constant length",
        "arXiv 2503.20783",
        UNIFORM | GRPO | {"objective": {"name": "grpo", "scale_by_std": False, "aggregation": "constant"}},
    ),
    "dapo": Recipe(
        "GRPO with dynamic sampling (groups of equal rewards are replaced), clip-higher, mean over tokens",
        "arXiv 2503.14476",
        UNIFORM
        | GRPO
        | {
            "gate": {"name": "dynamic"},
            "objective": {"name": "grpo", "aggregation": "token_mean", "clip_low": 0.2, "clip_high": 0.28},
            "optimizer": {"mini_batches": 16},
        },
    ),
    "gspo": Recipe(
        "GRPO with one importance ratio per sequence",
        "arXiv 2507.18071",
        UNIFORM
        | GRPO
        | {
            "objective": {"name": "grpo", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
            "optimizer": {"mini_batches": 4},
        },
    ),
    "lilo": Recipe(
        "GRPO on the quarter of the sampled groups with the highest p(1 - p)",
        "Foster et al., NeurIPS 2025",
        UNIFORM | GRPO | {"gate": {"name": "lilo"}},
    ),
    "mopps": Recipe(
        "GRPO on prompts chosen by Thompson sampling: the draw from their Beta posterior is nearest to 0.5",
        "arXiv 2507.04632",
        UNIFORM | GRPO | {"selection": {"method": "thompson"}, "estimator": {"name": "counts"}},
    ),
    "mapp": Recipe(
        "GRPO on prompts whose groups are most likely to have unequal rewards, by their Beta posterior",
        "MaPP",
        UNIFORM | GRPO | {"selection": {"method": "mapp"}, "estimator": {"name": "counts"}},
    ),
    "bots": Recipe(
        "GRPO on prompts chosen by Thompson sampling, with implied evidence about the prompts not sampled",
        "arXiv 2510.26374",
        UNIFORM | GRPO | {"selection": {"method": "thompson"}, "estimator": {"name": "bots"}},
    ),
    "greso": Recipe(
        "GRPO with dynamic sampling, skipping prompts whose last groups had equal rewards",
        "arXiv 2506.02177",
        UNIFORM | GRPO | {"selection": {"method": "greso"}, "gate": {"name": "dynamic", "adaptive_batch": True}},
    ),
    "pcl": Recipe(
        "GRPO on prompts whose value, by a regression, is nearest to 0.5 among 4 times as many random candidates",
        "arXiv 2510.01135",
        NEAREST | GRPO | {"selection": {"method": "nearest", "candidates": 4}},
    ),
    "flowrl": Recipe(
        "length-normalised trajectory balance to the initial policy, z-scored rewards, log Z at the policy's rate",
        "arXiv 2509.15207",
        UNIFORM
        | {
            "objective": {"name": "flowrl"},
            "replay": {"enabled": False},
            "partition": {"name": "mlp", "learning_rate": None, "prior_accuracy": 0.0},
        },
    ),
    "gflowrl": Recipe(
        "FlowRL with log Z estimated from the group, a capped importance weight and a clipped gap",
        "arXiv 2607.13394",
        UNIFORM | {"objective": {"name": "gflowrl"}, "replay": {"enabled": False}},
    ),
    "tb": Recipe(
        "PACED-RL's objective alone: trajectory balance with a learned log Z, uniform prompts",
        PACED_RL,
        UNIFORM_WITH_Z | BALANCE,
    ),
    "tb_groupmean": Recipe(
        "trajectory balance with log Z estimated from the group (VarGrad, TBA)",
        "arXiv 2503.18929",
        UNIFORM | BALANCE | {"objective": {"name": "trajectory_balance", "log_z": "group_mean"}},
    ),
    "paced": Recipe(
        "PACED-RL: prompts whose β·log Z is nearest to 0.5, trajectory balance, replay",
        PACED_RL,
        NEAREST | BALANCE_WITH_REPLAY,
    ),
    "paced_closed": Recipe(
        "ours: PACED-RL with log Z in closed form, and nothing else changed",
        "this project",
        NEAREST | BALANCE_WITH_REPLAY | CLOSED_FORM,
    ),
    "paced_select": Recipe("ablation: PACED-RL without replay", PACED_RL, NEAREST | BALANCE),
    "paced_replay": Recipe("ablation: PACED-RL on uniform prompts", PACED_RL, UNIFORM_WITH_Z | BALANCE_WITH_REPLAY),
    "paced_noise": Recipe(
        "control: PACED-RL with noise in place of log Z for selection",
        PACED_RL,
        NEAREST | BALANCE_WITH_REPLAY | {"selection": {"method": "noise"}},
    ),
    "paced_grpo": Recipe("GRPO with PACED-RL's selection of prompts", PACED_RL, NEAREST | GRPO),
    "paced_plus": Recipe(
        "ours: joint draws of log Z in closed form with counts, some solved prompts, blended baseline, replay",
        "this project",
        BALANCE_WITH_REPLAY
        | CLOSED_FORM
        | {
            "selection": {"method": "thompson", "retain_fraction": 1 / 16, "cooldown_steps": 1},
            "estimator": {"name": "combined", "prior_strength": None, "discount": 0.6},
            "gate": {"name": "none"},
            "objective": {"name": "trajectory_balance", "log_z": "blended"},
        },
    ),
    "oracle": Recipe(
        "upper bound: PACED-RL with true accuracies instead of estimates (only for tasks with one right answer)",
        "this project",
        NEAREST | BALANCE_WITH_REPLAY | {"estimator": {"name": "oracle"}},
    ),
}


def with_recipe(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's settings, with the recipe's values for whatever the user did not set.

    If the user chose another variant of a section (``objective.name``), none of the recipe's values for that section
    apply. Raises ValueError for an unknown recipe.
    """
    name = tree.get("recipe", DEFAULT_RECIPE)
    if not isinstance(name, str) or name not in RECIPES:
        hint = did_you_mean(str(name), RECIPES, before="") or f"there are {', '.join(RECIPES)}"
        raise ValueError(f"recipe: there is no recipe '{name}': {hint}")
    merged = dict(tree)
    for section, row in (MLP | RECIPES[name].settings).items():
        own = tree.get(section, {})
        if isinstance(own, Mapping) and own.get("name", row.get("name")) == row.get("name"):
            merged[section] = {**row, **own}
    return merged
