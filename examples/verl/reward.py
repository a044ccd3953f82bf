"""A reward function with verl's signature that judges math answers with pacedrl's verifier."""

from typing import Any

from pacedrl.tasks.math.rewards import math_reward


def compute_score(data_source: str, solution_str: str, ground_truth: Any, **_: Any) -> float:
    """Return 1.0 if the answer is correct, else 0.0.

    Raises JudgeError for a gold answer that cannot be read; verl then drops the completion.
    """
    return math_reward(ground_truth, solution_str)
