"""pass@k, mean@n and diversity, with bootstrap intervals over prompts: pure functions of plain values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 1000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PromptResult:
    """Rewards and stated answers of a prompt's judged completions; completions with a verifier error are left out."""

    rewards: Sequence[float]
    answers: Sequence[str]

    @property
    def correct(self) -> int:
        return sum(reward >= 1.0 for reward in self.rewards)

    @property
    def correct_answers(self) -> set[str]:
        return {answer for answer, reward in zip(self.answers, self.rewards, strict=True) if reward >= 1.0}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """1 − C(n−c, k)/C(n, k): the unbiased estimate of the chance that one of k samples is right (arXiv 2107.03374).

    Raises ValueError unless 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} cannot be estimated from {correct} correct of {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap(values_P: Sequence[float], seed: int = 0) -> Estimate:
    """Mean and percentile interval over resampled prompts. Raises ValueError if there are no prompts."""
    if not len(values_P):
        raise ValueError("no prompts to average over")
    values = np.asarray(values_P, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(len(values), size=(BOOTSTRAP_RESAMPLES, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), INTERVAL)
    return Estimate(float(values.mean()), float(low), float(high))


def summarise(results: Sequence[PromptResult], ks: Sequence[int]) -> dict[str, Estimate]:
    """Compute the figures of one task.

    ``pass@k`` counts completions with full reward. ``mean@n`` is the mean reward of the n samples, partial credit
    included. ``distinct`` and ``distinct_correct`` are the numbers of different (correct) answers per prompt. A prompt
    with fewer than k judged completions does not enter pass@k.

    Raises ValueError if no prompt has enough judged completions for some k.
    """
    judged = [result for result in results if result.rewards]
    figures: dict[str, Estimate] = {}
    for k in ks:
        enough = [result for result in judged if len(result.rewards) >= k]
        figures[f"pass@{k}"] = bootstrap([pass_at_k(len(r.rewards), r.correct, k) for r in enough])
    samples = max(len(result.rewards) for result in judged)
    figures[f"mean@{samples}"] = bootstrap([float(np.mean(result.rewards)) for result in judged])
    figures["distinct"] = bootstrap([len(set(result.answers)) for result in judged])
    figures["distinct_correct"] = bootstrap([len(result.correct_answers) for result in judged])
    return figures
