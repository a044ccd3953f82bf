"""A reward function of verl's signature: pacedrl's own verdict on a math answer, 1.0 or 0.0."""

from typing import Any

from pacedrl.tasks.math.rewards import math_reward


def compute_score(data_source: str, solution_str: str, ground_truth: Any, **_: Any) -> float:
    """Raises JudgeError for a gold answer that cannot be read; verl then drops the completion."""
    return math_reward(ground_truth, solution_str)
