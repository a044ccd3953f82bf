"""The method: torch and numpy only, usable from any trainer. Read objectives, partition, scheduler, in that order."""

from pacedrl.method.estimator import calibration_metrics
from pacedrl.method.objectives import sequence_log_ratio, trajectory_balance, trajectory_balance_advantage
from pacedrl.method.partition import LogPartition, PartitionLearner
from pacedrl.method.replay import ReplayBuffer, ReplayEntry
from pacedrl.method.scheduler import DifficultyScheduler, Rollouts

__all__ = [
    "DifficultyScheduler",
    "LogPartition",
    "PartitionLearner",
    "ReplayBuffer",
    "ReplayEntry",
    "Rollouts",
    "calibration_metrics",
    "sequence_log_ratio",
    "trajectory_balance",
    "trajectory_balance_advantage",
]
