"""The one table of methods: a recipe's name → its selection, estimator, gate, objective and replay.

A recipe is a set of values for the configuration; what the user's own configuration says goes before it. What a recipe
does not name keeps the defaults. All share sampler, learner and schedule; only the number of optimiser steps on a
step's rollouts (``optimizer.mini_batches``) is the paper's own for dapo and gspo: to compare at equal steps, set it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Settings = dict[str, dict[str, Any]]

DEFAULT_RECIPE = "paced"


@dataclass(frozen=True)
class Recipe:
    """``settings`` are sections of the configuration (`pacedrl.config.Config`)."""

    summary: str
    paper: str
    settings: Settings


PACED_RL = "arXiv 2602.12642"

# Selection: which prompts come next, and the estimator it goes by.
UNIFORM: Settings = {"selection": {"method": "uniform"}, "estimator": {"name": "none"}, "gate": {"name": "none"}}
UNIFORM_WITH_Z: Settings = UNIFORM | {"estimator": {"name": "partition"}}
NEAREST: Settings = {"selection": {"method": "nearest"}, "estimator": {"name": "partition"}, "gate": {"name": "none"}}

# Objective, and whether past completions are replayed.
GRPO: Settings = {"objective": {"name": "grpo"}, "replay": {"enabled": False}}
BALANCE: Settings = {"objective": {"name": "trajectory_balance"}, "replay": {"enabled": False}}
BALANCE_WITH_REPLAY: Settings = {"objective": {"name": "trajectory_balance"}, "replay": {"enabled": True}}

RECIPES: dict[str, Recipe] = {
    "grpo": Recipe("group z-scored advantage, clipped ratio, uniform prompts", "arXiv 2402.03300", UNIFORM | GRPO),
    "dr_grpo": Recipe(
        "GRPO without the biases of std and length: centred advantage, constant length",
        "arXiv 2503.20783",
        UNIFORM | GRPO | {"objective": {"name": "grpo", "scale_by_std": False, "aggregation": "constant"}},
    ),
    "dapo": Recipe(
        "GRPO with dynamic sampling (drop unmixed groups, refill), clip-higher, token mean",
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
        "GRPO with one importance ratio a sequence",
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
        "GRPO on prompts whose draw from a Beta posterior of counts is nearest to 0.5",
        "arXiv 2507.04632",
        UNIFORM | GRPO | {"selection": {"method": "thompson"}, "estimator": {"name": "counts"}},
    ),
    "flowrl": Recipe(
        "trajectory balance to the initial policy, length-normalised, z-scored rewards, Z at the policy's rate",
        "arXiv 2509.15207",
        UNIFORM
        | {
            "objective": {"name": "flowrl"},
            "replay": {"enabled": False},
            "partition": {"learning_rate": None, "prior_accuracy": 0.0},
        },
    ),
    "gflowrl": Recipe(
        "FlowRL with the group's own log Z, capped weight and clipped gap",
        "arXiv 2607.13394",
        UNIFORM | {"objective": {"name": "gflowrl"}, "replay": {"enabled": False}},
    ),
    "tb": Recipe("PACED-RL's objective alone: learned log Z, uniform prompts", PACED_RL, UNIFORM_WITH_Z | BALANCE),
    "tb_groupmean": Recipe(
        "trajectory balance with the group-mean log Z (VarGrad, TBA)",
        "arXiv 2503.18929",
        UNIFORM | BALANCE | {"objective": {"name": "trajectory_balance", "log_z": "group_mean"}},
    ),
    "paced": Recipe(
        "PACED-RL: prompts whose β·log Z is nearest to 0.5, trajectory balance, replay",
        PACED_RL,
        NEAREST | BALANCE_WITH_REPLAY,
    ),
    "paced_select": Recipe("ablation: PACED-RL without replay", PACED_RL, NEAREST | BALANCE),
    "paced_replay": Recipe("ablation: PACED-RL on uniform prompts", PACED_RL, UNIFORM_WITH_Z | BALANCE_WITH_REPLAY),
    "paced_noise": Recipe(
        "control: PACED-RL with noise in place of log Z for selection",
        PACED_RL,
        NEAREST | BALANCE_WITH_REPLAY | {"selection": {"method": "noise"}},
    ),
    "paced_grpo": Recipe("PACED-RL's selection on GRPO", PACED_RL, NEAREST | GRPO),
    "paced_plus": Recipe(
        "ours: log Z and counts combined, most learnable prompts, exploration, cooldown, blended baseline, replay",
        "this project",
        BALANCE_WITH_REPLAY
        | {
            "selection": {"method": "learnability", "explore_fraction": 0.1, "cooldown_steps": 3},
            "estimator": {"name": "combined", "prior_strength": 4.0, "discount": 0.6},
            "gate": {"name": "none"},
            "objective": {"name": "trajectory_balance", "log_z": "blended"},
        },
    ),
    "oracle": Recipe(
        "upper bound: PACED-RL with true accuracies in place of the estimates (single-answer tasks only)",
        "this project",
        NEAREST | BALANCE_WITH_REPLAY | {"estimator": {"name": "oracle"}},
    ),
}


def with_recipe(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's tree with its recipe's values wherever it says nothing itself.

    A section in which the tree names another variant (``objective.name``) takes none of the recipe's values. Raises
    ValueError for a recipe that does not exist.
    """
    name = tree.get("recipe", DEFAULT_RECIPE)
    if not isinstance(name, str) or name not in RECIPES:
        close = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(RECIPES)}"
        raise ValueError(f"recipe: there is no recipe '{name}': {hint}")
    merged = dict(tree)
    for section, row in RECIPES[name].settings.items():
        own = tree.get(section, {})
        if isinstance(own, Mapping) and own.get("name", row.get("name")) == row.get("name"):
            merged[section] = {**row, **own}
    return merged
