"""Training objectives, one file each. `build_objective` makes the one that a configuration names."""

from typing import Any

from pacedrl.config import Config
from pacedrl.training.objectives.base import Objective
from pacedrl.training.objectives.flowrl import FlowRl
from pacedrl.training.objectives.gflowrl import GFlowRl
from pacedrl.training.objectives.grpo import Grpo
from pacedrl.training.objectives.trajectory_balance import TrajectoryBalance

OBJECTIVES: dict[str, Any] = {
    "trajectory_balance": TrajectoryBalance,
    "grpo": Grpo,
    "flowrl": FlowRl,
    "gflowrl": GFlowRl,
}
"""``objective.name`` → its class, which takes its section of the configuration and the whole configuration."""


def build_objective(config: Config) -> Objective[Any]:
    """The objective that ``objective.name`` names."""
    made: Objective[Any] = OBJECTIVES[config.objective.name](config.objective, config)
    return made
