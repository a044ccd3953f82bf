"""Evidence about every prompt's accuracy, beliefs, and measures of how accurate these are.

A belief is either a point estimate or a Beta distribution. The Beta distribution combines a prior with the prompt's own
results, in which older results count less. The methods differ in the prior: MoPPS takes a flat one, ours takes log Z,
which generalises over similar prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Rows = Indices | slice
"""Rows of prompts, or a slice of all rows."""
ALL = slice(None)

FLAT_STRENGTH = 2.0
"""α + β of the uniform distribution Beta(1, 1)."""
FLAT_MEAN = 0.5
"""Mean of the uniform distribution."""
STRENGTH_RANGE = (1.0, 100.0)
"""Range of a prior strength that is estimated, in completions."""
TINY = 1e-9
"""Lower bound of α and β when drawing: rounding may bring them to 0, where there is no Beta distribution."""
LOGIT_GRID = np.linspace(-12.0, 12.0, 4001)
"""Grid for integrals over a Beta distribution: arsinh of the logit of the accuracy."""
STRENGTH_MEMORY = 0.9
"""Factor by which the older moments of a learned strength are multiplied at each step."""

POOL_BINS = 20
"""Number of equal bins over [0, 1] in the histogram of all estimates."""
STALE_STEPS = 20
"""Age in steps above which the evidence for an estimate counts as stale. In 20 steps the demo's held-out accuracy rises
by 0.07 on average, and by 0.3 at first. An estimate of that age is off by as much, in addition to the error of 0.1 to
0.2 that a good estimate has."""

CALIBRATION = (
    "accuracy/estimate_mean",
    "accuracy/observed_mean",
    "accuracy/mae",
    "accuracy/bias",
    "accuracy/spearman",
)
"""Names of the metrics that `calibration_metrics` returns."""


@dataclass(frozen=True)
class Rollouts:
    """The completions of one step as flat arrays with one entry per completion.

    Attributes:
        keys: each completion's prompt.
        reward_B: raw rewards in [0, 1]; NaN marks a completion that could not be judged and is ignored.
        log_ratio_B: Σ_t (log π_θ − log π_old), 0 by default; finite.
        token_ids: the completions' tokens. Correct completions with tokens are candidates for replay; None, for one
            completion or for all, excludes them.
        logprobs: the behaviour policy's log-probability of each token.
        partition_reward_B: the reward to fit log Z to, if it is not the raw reward; NaN excludes a completion from the
            fit. FlowRL passes z-scored rewards here, and mean_t(log π_θ − log π_ref) as ``log_ratio_B``.
        policy_step_B: the step of the policy that sampled each completion: the scheduler's ``step`` when that policy
            was handed to the sampler. By default it is the scheduler's present step.
    """

    keys: Sequence[str]
    reward_B: ArrayLike
    log_ratio_B: ArrayLike = 0.0
    token_ids: Sequence[Sequence[int] | None] | None = None
    logprobs: Sequence[Sequence[float]] = ()
    partition_reward_B: ArrayLike | None = None
    policy_step_B: ArrayLike | None = None

    def judged(self) -> Rollouts:
        """Return the completions that have a reward, with all arrays at full length.

        Raises ValueError when the lengths differ, a reward lies outside [0, 1], or a number that log Z is fitted to is
        not finite.
        """
        reward_B = np.asarray(self.reward_B, dtype=np.float64)
        if len(reward_B) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(reward_B)} rewards")
        log_ratio_B = np.broadcast_to(np.asarray(self.log_ratio_B, dtype=np.float64), reward_B.shape)
        kept = np.flatnonzero(~np.isnan(reward_B)).tolist()
        if ((reward_B[kept] < 0) | (reward_B[kept] > 1)).any():
            raise ValueError("rewards must lie in [0, 1]: raw, not z-scored")
        ids, shaped, step = self.token_ids, self.partition_reward_B, self.policy_step_B
        fitted_B = reward_B if shaped is None else np.asarray(shaped, dtype=np.float64)
        # One such number would make all estimates NaN for the rest of the run.
        wrong = [i for i in kept if not np.isfinite(log_ratio_B[i]) or np.isinf(fitted_B[i])]
        if wrong:
            raise ValueError(f"a log-ratio or partition reward of prompt {self.keys[wrong[0]]!r} is not finite")
        return Rollouts(
            [self.keys[i] for i in kept],
            reward_B[kept],
            log_ratio_B[kept],
            None if ids is None else [ids[i] for i in kept],
            () if ids is None else [self.logprobs[i] for i in kept],
            fitted_B[kept],
            None if step is None else np.broadcast_to(np.asarray(step, dtype=np.int64), reward_B.shape)[kept],
        )

    def policy_step_by_prompt(self, now: int) -> dict[str, int]:
        """Return each prompt's policy step: the newest of its completions, judged or not. ``now`` is the present step.

        Raises ValueError for a step below 0 or after ``now``.
        """
        step_B = np.asarray(now if self.policy_step_B is None else self.policy_step_B, dtype=np.int64)
        newest: dict[str, int] = {}
        for key, step in zip(self.keys, np.broadcast_to(step_B, len(self.keys)).tolist(), strict=True):
            newest[key] = max(step, newest.get(key, step))
        if not all(0 <= step <= now for step in newest.values()):
            raise ValueError(f"policy steps must lie between 0 and the present step {now}")
        return newest

    def rewards_by_prompt(self) -> dict[str, list[float]]:
        """Return the rewards of each prompt; the prompts are in order of first appearance."""
        rewards: dict[str, list[float]] = {}
        for key, reward in zip(self.keys, np.asarray(self.reward_B), strict=True):
            rewards.setdefault(key, []).append(float(reward))
        return rewards


@dataclass(frozen=True)
class Beliefs:
    """Beta distributions of the accuracies of some prompts, given by mean and strength α + β.

    An infinite strength marks a point estimate. Means of point estimates may lie outside [0, 1], because β·log Z is not
    clipped. A mean is NaN if nothing is known.
    """

    mean_N: Floats
    strength_N: Floats

    @property
    def are_points(self) -> bool:
        return bool(np.isinf(self.strength_N).all())

    def draw(self, rng: np.random.Generator) -> Floats:
        """Draw an accuracy for every prompt; point estimates return their mean."""
        if self.are_points:
            return self.mean_N
        alpha_N, beta_N = self.mean_N * self.strength_N, (1.0 - self.mean_N) * self.strength_N
        return rng.beta(alpha_N.clip(TINY), beta_N.clip(TINY))

    def learnability(self) -> Floats:
        """Return E[p(1 − p)] = αβ/((α + β)(α + β + 1)), or p̂(1 − p̂) for point estimates, with p̂ clipped to [0, 1]."""
        mean_N = self.mean_N.clip(0.0, 1.0)
        shrinkage_N = 1.0 if self.are_points else self.strength_N / (self.strength_N + 1.0)
        learnability_N: Floats = mean_N * (1.0 - mean_N) * shrinkage_N
        return learnability_N

    def mixed(self, group_size: int) -> Floats:
        """Return E[1 − p^G − (1 − p)^G], the probability that a group of G completions has unequal rewards of 0 and 1.

        G is ``group_size``, at least 1. For a Beta distribution with mean m and strength κ, E[p^G] is the beta-binomial
        probability Π_{i<G} (κ·m + i)/(κ + i); for a point estimate it is m^G, with m clipped to [0, 1].
        """
        mean_N = self.mean_N.clip(0.0, 1.0)
        right_N, wrong_N = np.ones_like(mean_N), np.ones_like(mean_N)
        for i in range(group_size):
            share_N = i / self.strength_N  # (m + i/κ)/(1 + i/κ) is m for κ = ∞
            right_N *= (mean_N + share_N) / (1.0 + share_N)
            wrong_N *= (1.0 - mean_N + share_N) / (1.0 + share_N)
        mixed_N: Floats = 1.0 - right_N - wrong_N
        return mixed_N

    def interval(self, share: float) -> tuple[Floats, Floats]:
        """Return the ends of the central interval that contains this share of the probability; points have no width."""
        if self.are_points:
            return self.mean_N, self.mean_N
        alpha_N1, beta_N1 = (
            (mean_N * self.strength_N).clip(TINY)[:, None] for mean_N in (self.mean_N, 1.0 - self.mean_N)
        )
        # Integrated over the logit t, in which the density has no poles: p^α·(1 − p)^β.
        t_K = np.sinh(LOGIT_GRID)
        log_density_NK = -alpha_N1 * np.logaddexp(0.0, -t_K) - beta_N1 * np.logaddexp(0.0, t_K)
        density_NK = np.exp(log_density_NK - log_density_NK.max(axis=1, keepdims=True)) * np.cosh(LOGIT_GRID)
        below_NK = np.cumsum(density_NK, axis=1)
        below_NK = (below_NK - density_NK / 2) / below_NK[:, -1:]
        ends = [
            np.array([np.interp(quantile, below_K, t_K) for below_K in below_NK])
            for quantile in ((1.0 - share) / 2.0, (1.0 + share) / 2.0)
        ]
        low_N, high_N = (0.5 * (1.0 + np.tanh(end_N / 2.0)) for end_N in ends)
        return low_N, high_N


class DiscountedCounts:
    """Discounted numbers of right and wrong completions of every prompt.

    When a prompt is visited, S ← λ·S + Σ r and F ← λ·F + Σ (1 − r) with the discount λ; the counts of other prompts do
    not change. With the prior Beta(α⁰, β⁰), α = α⁰ + S follows MoPPS' α ← λα + (1 − λ)α⁰ + s (arXiv 2507.04632).
    A partial reward counts as a fraction of a right completion.

    A visit is what the policy of one step did on the prompt. Its results may come in parts; only the first part of a
    newer visit discounts S and F. Results of an older visit than the newest are multiplied by λ themselves. If just one
    visit has overtaken them, this is what they would be worth had they come in order.
    """

    def __init__(self, prompts: int, discount: float) -> None:
        self.discount = discount
        self.right_N = np.zeros(prompts)
        self.wrong_N = np.zeros(prompts)
        self.newest_N: Indices = np.full(prompts, -1, dtype=np.int64)
        """Policy step of each prompt's newest results, −1 before there are any."""

    def observe(
        self,
        index_P: Indices,
        right_P: Floats,
        trials_P: Floats,
        step_P: Indices | int,
        weight_P: Floats | float = 1.0,
    ) -> None:
        """Add results of distinct prompts.

        Args:
            index_P: the prompts' rows.
            right_P: their summed rewards.
            trials_P: their numbers of judged completions.
            step_P: the steps of the policies that sampled them.
            weight_P: factors by which these results are multiplied.
        """
        newest_P = self.newest_N[index_P]
        before_P = np.where(step_P > newest_P, self.discount, 1.0)
        added_P = weight_P * np.where(step_P < newest_P, self.discount, 1.0)
        self.right_N[index_P] = before_P * self.right_N[index_P] + added_P * right_P
        self.wrong_N[index_P] = before_P * self.wrong_N[index_P] + added_P * trials_P - added_P * right_P
        self.newest_N[index_P] = np.maximum(newest_P, step_P)

    def posterior(self, prior_mean_P: Floats, prior_strength_P: Floats | float, rows: Rows = ALL) -> Beliefs:
        """Return Beta(κ·m + S, κ·(1 − m) + F) of the prompts in ``rows``, for priors of mean m and strength κ."""
        right_P, wrong_P = self.right_N[rows], self.wrong_N[rows]
        strength_P = prior_strength_P + right_P + wrong_P
        return Beliefs((prior_strength_P * prior_mean_P + right_P) / strength_P, strength_P)


class PriorStrength:
    """Strength κ of the Beta prior whose mean is log Z's estimate: the number of completions the estimate is worth.

    κ is fixed, or learned by the method of moments if ``strength`` is None. If a prompt's accuracy has a Beta
    distribution of mean m and strength κ, then the mean p̄ of n rewards with sample variance v satisfies E[(p̄ − m)² −
    v/n] = m(1 − m)/(κ + 1). The left side is the squared error of the estimate m in excess of the sampling noise. Both
    sides are summed over the prompts of a step and averaged over steps. The learned κ describes the selected prompts
    only; the estimate may be better or worse for others.
    """

    def __init__(self, strength: float | None, start: float = 4.0) -> None:
        self.learned = strength is None
        self.value = start if strength is None else strength
        self.excess = self.scale = 0.0

    def observe(self, prior_mean_P: Floats, observed_P: Floats, variance_P: Floats, trials_P: Floats) -> None:
        """Update a learned strength from one step.

        Prompts with a single reward are left out, because its variance is unknown.

        Args:
            prior_mean_P: the estimates before they were fitted to these rewards.
            observed_P: mean reward of each prompt.
            variance_P: sample variance of its rewards.
            trials_P: number of its rewards.
        """
        several = trials_P > 1
        if not self.learned or not several.any():
            return
        missed_P = np.square(observed_P - prior_mean_P) - variance_P / trials_P
        self.excess = STRENGTH_MEMORY * self.excess + float(missed_P[several].sum())
        self.scale = STRENGTH_MEMORY * self.scale + float((prior_mean_P * (1.0 - prior_mean_P))[several].sum())
        if self.scale > 0.0:
            low, high = STRENGTH_RANGE
            overdispersion = min(max(self.excess / self.scale, 1.0 / (high + 1.0)), 1.0 / (low + 1.0))
            self.value = 1.0 / overdispersion - 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "excess": self.excess, "scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.excess, self.scale = state["value"], state["excess"], state["scale"]


def calibration_metrics(estimate_P: Floats, observed_P: Floats) -> dict[str, float]:
    """Compare estimated and observed accuracies of the prompts of one step.

    ``accuracy/mae`` is their mean absolute difference. It does not reach 0 with G completions per prompt, because the
    observation itself has the standard error √(p(1−p)/G), which is 0.18 at p = ½ and G = 8. ``accuracy/bias`` is
    mean(estimate − observed). ``accuracy/spearman`` is the rank correlation, and NaN if either side is constant, as all
    estimates are at the start.
    """
    error_P = estimate_P - observed_P
    mae, rank = np.abs(error_P).mean(), spearman(estimate_P, observed_P)
    values = (estimate_P.mean(), observed_P.mean(), mae, error_P.mean(), rank)
    return dict(zip(CALIBRATION, map(float, values), strict=True))


def pool_histogram(accuracy_N: Floats) -> dict[str, Any] | None:
    """Count the estimates in each of ``POOL_BINS`` equal bins over [0, 1], and those ``below`` 0 and ``above`` 1.

    Returns None if all estimates are NaN.
    """
    if np.isnan(accuracy_N).all():
        return None
    counts, _ = np.histogram(accuracy_N, bins=POOL_BINS, range=(0.0, 1.0))
    below, above = int((accuracy_N < 0.0).sum()), int((accuracy_N > 1.0).sum())
    return {"below": below, "counts": counts.tolist(), "above": above}


def spearman(first_P: Floats, second_P: Floats) -> float:
    """Return Spearman's rank correlation with average ranks for ties; NaN if either side is constant or holds a NaN."""
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
