"""Prompts and the verifiers that judge their completions."""

from pacedrl.tasks.datasets import RewardPart, Task, load_task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict, check_spec, gold_completion

__all__ = [
    "Job",
    "RewardPart",
    "Task",
    "Verdict",
    "VerifierPool",
    "check_spec",
    "gold_completion",
    "load_task",
]
