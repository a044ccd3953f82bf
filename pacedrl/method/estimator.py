"""What is believed of every prompt's accuracy, from which evidence, and how good that is.

A belief is a point estimate, or a Beta distribution: a prior, plus the prompt's own results, of which older ones count
less. Where the prior comes from is what tells the methods apart: nowhere (MoPPS), or log Z, which knows of similar
prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLAT_STRENGTH = 2.0
"""α + β of the uniform Beta(1, 1)."""
FLAT_MEAN = 0.5
LEARNED_STRENGTH_RANGE = (1.0, 100.0)
TINY = 1e-9
"""Least α and β drawn from: rounding may leave 0 of a weak prior, and there is no Beta distribution of 0."""
STRENGTH_MEMORY = 0.9
"""Weight of what the moments of a learned strength were, at each step."""

POOL_BINS = 20
"""Of equal width over [0, 1], in the histogram of all prompts' estimates."""
STALE_STEPS = 20
"""Age from which on an estimate's evidence counts as stale. In 20 steps the demo's held-out accuracy rises by some 0.1:
what an estimate then says of the policy is off by as much as good ones are by themselves."""

CALIBRATION = (
    "accuracy/estimate_mean",
    "accuracy/observed_mean",
    "accuracy/mae",
    "accuracy/bias",
    "accuracy/spearman",
)
"""The names of `calibration_metrics`."""


@dataclass(frozen=True)
class Beliefs:
    """Accuracy of every prompt: means, and the strength α + β of Beta distributions, infinite for point estimates.

    Means may leave [0, 1] where they are point estimates (p̂ of log Z is not clipped), and are NaN where nothing is
    believed.
    """

    mean_N: Floats
    strength_N: Floats

    @property
    def are_points(self) -> bool:
        return bool(np.isinf(self.strength_N).all())

    def draw(self, rng: np.random.Generator) -> Floats:
        """One draw of every prompt's accuracy; a point estimate gives itself."""
        if self.are_points:
            return self.mean_N
        alpha_N, beta_N = self.mean_N * self.strength_N, (1.0 - self.mean_N) * self.strength_N
        return rng.beta(alpha_N.clip(TINY), beta_N.clip(TINY))

    def learnability(self) -> Floats:
        """E[p(1 − p)] = αβ/((α + β)(α + β + 1)), and p̂(1 − p̂) of point estimates, clipped to [0, 1]."""
        mean_N = self.mean_N.clip(0.0, 1.0)
        shrinkage_N = 1.0 if self.are_points else self.strength_N / (self.strength_N + 1.0)
        learnability_N: Floats = mean_N * (1.0 - mean_N) * shrinkage_N
        return learnability_N


class DiscountedCounts:
    """Each prompt's right and wrong completions so far, older ones counting less.

    At a visit, S ← λ·S + Σ r and F ← λ·F + Σ (1 − r) with the discount λ; other prompts keep theirs. With the prior
    Beta(α⁰, β⁰), α = α⁰ + S follows MoPPS' α ← λα + (1 − λ)α⁰ + s (arXiv 2507.04632). Partial rewards count in part.
    """

    def __init__(self, prompts: int, discount: float) -> None:
        self.discount = discount
        self.right_N = np.zeros(prompts)
        self.wrong_N = np.zeros(prompts)

    def observe(self, index_P: NDArray[np.int64], right_P: Floats, trials_P: Floats) -> None:
        """``index_P`` distinct prompts, their summed rewards and numbers of judged completions."""
        self.right_N[index_P] = self.discount * self.right_N[index_P] + right_P
        self.wrong_N[index_P] = self.discount * self.wrong_N[index_P] + trials_P - right_P

    def posterior(self, prior_mean_N: Floats, prior_strength: float) -> Beliefs:
        """Beta(κ·m + S, κ·(1 − m) + F)."""
        strength_N = prior_strength + self.right_N + self.wrong_N
        return Beliefs((prior_strength * prior_mean_N + self.right_N) / strength_N, strength_N)


class PriorStrength:
    """κ of the Beta prior whose mean is log Z's estimate: how many completions that estimate is worth.

    Fixed, or learned (``strength`` None) by the method of moments. If a prompt's accuracy is Beta of mean m and
    strength κ, the mean of n rewards with sample variance v has E[(p̄ − m)² − v/n] = m(1 − m)/(κ + 1): what the estimate
    m misses beyond the noise of n rewards gives κ. Both sides are summed over a step's prompts and averaged over steps.
    It is the strength on the prompts that were selected; elsewhere the estimate may be better or worse.
    """

    def __init__(self, strength: float | None, start: float = 4.0) -> None:
        self.learned = strength is None
        self.value = start if strength is None else strength
        self.excess = self.scale = 0.0

    def observe(self, prior_mean_P: Floats, observed_P: Floats, variance_P: Floats, trials_P: Floats) -> None:
        """Estimates before they were fitted to the observations; mean, sample variance and number of the rewards.

        Prompts with one reward, whose variance is not known, do not count.
        """
        several = trials_P > 1
        if not self.learned or not several.any():
            return
        missed_P = np.square(observed_P - prior_mean_P) - variance_P / trials_P
        self.excess = STRENGTH_MEMORY * self.excess + float(missed_P[several].sum())
        self.scale = STRENGTH_MEMORY * self.scale + float((prior_mean_P * (1.0 - prior_mean_P))[several].sum())
        if self.scale > 0.0:
            low, high = LEARNED_STRENGTH_RANGE
            overdispersion = min(max(self.excess / self.scale, 1.0 / (high + 1.0)), 1.0 / (low + 1.0))
            self.value = 1.0 / overdispersion - 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "excess": self.excess, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.excess, self.scale = state["value"], state["excess"], state["scale"]


def calibration_metrics(estimate_P: Floats, observed_P: Floats) -> dict[str, float]:
    """Estimated against observed accuracy of the prompts of one step, both in units of accuracy.

    ``accuracy/mae`` is their mean absolute difference, which G completions a prompt cannot bring to 0: the observation
    itself has standard error √(p(1−p)/G), 0.18 at p = ½ and G = 8. ``accuracy/bias`` is mean(estimate − observed).
    ``accuracy/spearman`` is the rank correlation, NaN where either side is constant (every estimate, at the start).
    """
    error_P = estimate_P - observed_P
    mae, rank = np.abs(error_P).mean(), spearman(estimate_P, observed_P)
    values = (estimate_P.mean(), observed_P.mean(), mae, error_P.mean(), rank)
    return dict(zip(CALIBRATION, map(float, values), strict=True))


def pool_histogram(accuracy_N: Floats) -> dict[str, Any] | None:
    """How many prompts' estimates lie in each of ``POOL_BINS`` of [0, 1] (``counts``), ``below`` 0 and ``above`` 1.

    None where nothing is believed.
    """
    if np.isnan(accuracy_N).all():
        return None
    counts, _ = np.histogram(accuracy_N, bins=POOL_BINS, range=(0.0, 1.0))
    below, above = int((accuracy_N < 0.0).sum()), int((accuracy_N > 1.0).sum())
    return {"below": below, "counts": counts.tolist(), "above": above}


def spearman(first_P: Floats, second_P: Floats) -> float:
    """Spearman's rank correlation with average ranks for ties; NaN where either side is constant or holds a NaN."""
    if np.isnan(first_P).any() or np.isnan(second_P).any():
        return float("nan")
    a, b = _centred_ranks(first_P), _centred_ranks(second_P)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def _centred_ranks(values_P: Floats) -> Floats:
    _, inverse, counts = np.unique(values_P, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average = last - (counts - 1) / 2
    ranks: Floats = average[inverse] - average[inverse].mean()
    return ranks
