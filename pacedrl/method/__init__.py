"""The method, for use in any trainer; it needs only torch and numpy. Read objectives, partition, scheduler in turn."""

from pacedrl.method.estimator import Beliefs, Rollouts, calibration_metrics
from pacedrl.method.objectives import (
    blended_baseline,
    clipped_policy_gradient,
    flow_balance,
    group_flow_balance,
    group_mean_log_z,
    group_relative_advantage,
    k3_divergence,
    sequence_log_ratio,
    trajectory_balance,
    trajectory_balance_advantage,
)
from pacedrl.method.partition import LogPartition, PartitionLearner, project
from pacedrl.method.scheduler import DifficultyScheduler
from pacedrl.method.selection import ReplayBuffer, ReplayEntry, most_learnable, uninformative

__all__ = [
    "Beliefs",
    "DifficultyScheduler",
    "LogPartition",
    "PartitionLearner",
    "ReplayBuffer",
    "ReplayEntry",
    "Rollouts",
    "blended_baseline",
    "calibration_metrics",
    "clipped_policy_gradient",
    "flow_balance",
    "group_flow_balance",
    "group_mean_log_z",
    "group_relative_advantage",
    "k3_divergence",
    "most_learnable",
    "project",
    "sequence_log_ratio",
    "trajectory_balance",
    "trajectory_balance_advantage",
    "uninformative",
]
