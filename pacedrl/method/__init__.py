"""The method, for use in any trainer; it needs only torch and numpy.

Read objectives, partition, closed_form, beliefs, selection and scheduler in turn.
"""

from pacedrl.method.beliefs import AccuracyEstimator
from pacedrl.method.closed_form import ClosedFormPartition
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
from pacedrl.method.partition import LogPartition, MlpPartition
from pacedrl.method.scheduler import DifficultyScheduler
from pacedrl.method.selection import ReplayBuffer, ReplayEntry, most_learnable, uninformative

__all__ = [
    "AccuracyEstimator",
    "Beliefs",
    "ClosedFormPartition",
    "DifficultyScheduler",
    "LogPartition",
    "MlpPartition",
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
    "sequence_log_ratio",
    "trajectory_balance",
    "trajectory_balance_advantage",
    "uninformative",
]
