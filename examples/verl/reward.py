"""A reward function with verl's signature that judges math answers with pacedrl's verifier."""

from typing import Any

from pacedrl.tasks.answers import math_reward


def compute_score(data_source: str, solution_str: str, ground_truth: Any, **_: Any) -> float:
    """Return 1.0 for a correct answer, else 0.0; raise JudgeError for an unreadable gold answer, whose completion verl drops."""
    return math_reward(ground_truth, solution_str)
