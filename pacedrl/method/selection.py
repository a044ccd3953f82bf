"""Which prompts to train on next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import Floats

Indices = NDArray[np.int64]

NEVER = -(2**40)
"""``last_used`` of a prompt that was never used."""


def nearest_target(estimate_N: Floats, target: float, count: int, rng: np.random.Generator) -> Indices:
    """The ``count`` prompts with the smallest |estimate − target|, in random order; O(N).

    PACED-RL, arXiv 2602.12642. The paper does not say how ties are broken: here at random, so that a fresh partition
    function, which knows nothing, selects uniformly.

    Raises ValueError when there are fewer than ``count`` prompts or an estimate is NaN.
    """
    if count > len(estimate_N):
        raise ValueError(f"cannot select {count} prompts from {len(estimate_N)}")
    if np.isnan(estimate_N).any():
        raise ValueError("an accuracy estimate is NaN")
    shuffled = rng.permutation(len(estimate_N))
    distance = np.abs(estimate_N[shuffled] - target)
    nearest = np.argpartition(distance, count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    chosen: Indices = rng.permutation(shuffled[nearest])
    return chosen


def rested(last_used_N: Indices, step: int, cooldown_steps: int, at_least: int) -> Indices:
    """Prompts not used in the last ``cooldown_steps`` steps.

    Should that leave fewer than ``at_least``, those that have rested longest join them: a cooldown never starves the
    batch.
    """
    free = np.flatnonzero(last_used_N < step - cooldown_steps)
    missing = at_least - len(free)
    if missing <= 0:
        return free
    resting = np.flatnonzero(last_used_N >= step - cooldown_steps)
    longest = resting[np.argsort(last_used_N[resting], kind="stable")[:missing]]
    return np.concatenate([free, longest])


def select(
    estimate_N: Floats,
    last_used_N: Indices,
    *,
    step: int,
    count: int,
    target: float,
    explore_fraction: float,
    cooldown_steps: int,
    rng: np.random.Generator,
) -> Indices:
    """``count`` distinct prompts: a uniform share of ``explore_fraction``, the rest nearest to the target.

    The explored share is rounded to the nearest whole number of prompts.
    """
    candidates = rested(last_used_N, step, cooldown_steps, at_least=count)
    explored = round(count * explore_fraction)
    greedy = candidates[nearest_target(estimate_N[candidates], target, count - explored, rng)]
    others = np.setdiff1d(candidates, greedy, assume_unique=True)
    return np.concatenate([greedy, rng.choice(others, size=explored, replace=False)])
