"""The estimators: they form a belief about each prompt's accuracy from log Z, its own results, or the truth."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pacedrl.method.bots import add_evidence, implied_accuracy
from pacedrl.method.closed_form import ClosedFormPartition
from pacedrl.method.estimator import (
    ALL,
    FLAT_MEAN,
    FLAT_STRENGTH,
    STALE_STEPS,
    STRENGTH_RANGE,
    Beliefs,
    DiscountedCounts,
    Floats,
    Indices,
    PriorStrength,
    Rows,
)
from pacedrl.method.partition import LogPartition, MlpPartition

EstimatorName = Literal["partition", "counts", "combined", "bots", "oracle", "none"]
Partition = MlpPartition | ClosedFormPartition
PartitionName = Literal["mlp", "closed_form"]

PRIOR_RANGE = (0.01, 0.99)
"""Range to which log Z's unbounded estimate is clipped before it becomes the mean of a Beta distribution."""
TINY_VARIANCE = 1e-9
"""Lower bound of a variance, against division by 0."""


class AccuracyEstimator:
    """Estimates the accuracy of N prompts, which are given by their rows.

    - ``partition``: β·log Z (the paper). With the MLP it is a point estimate. With a log Z in closed form it is a Beta
      distribution of variance v(x) + u, where u is the variance that the features do not explain
      (`ClosedFormPartition`).
    - ``counts``: a Beta posterior from a flat prior and the prompt's own discounted results (MoPPS).
    - ``combined``: the same posterior with β·log Z as the prior's mean (ours). ``prior_strength`` is the strength of
      all priors. If it is None, a log Z in closed form gives each prompt the strength of its Beta distribution above,
      and with the MLP one strength is learned (`PriorStrength`).
    - ``bots``: the posterior of ``counts``, but each step discounts the counts of all prompts and adds implied evidence
      to those of the prompts that it did not sample (BOTS, arXiv 2510.26374; `pacedrl.method.bots` states the
      departures).
    - ``oracle``: the accuracies in ``truth_N``, which the caller sets.
    - ``none``: no estimates; all are NaN.

    Args:
        name: one of the above.
        prompts: number N of prompts.
        partition: log Z, or None for an estimator that does not read it.
        prior_strength: for ``combined``, the number of completions that log Z's estimate is worth, > 0, or None.
        discount: for ``counts`` and ``combined``, the factor by which older results are multiplied at each visit; for
            ``bots``, at each step (1 − λ, 0.9 in its paper).
        implied_weight: for ``bots``, the weight ρ of implied evidence, in [0, 1].

    Raises ValueError for an unknown name, settings out of range, and a log Z that is missing.
    """

    def __init__(
        self,
        name: EstimatorName,
        prompts: int,
        partition: Partition | None,
        prior_strength: float | None,
        discount: float,
        implied_weight: float = 0.1,
    ) -> None:
        if name not in get_args(EstimatorName):
            raise ValueError(f"estimator must be one of {', '.join(get_args(EstimatorName))}, got '{name}'")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount must lie in [0, 1], got {discount}")
        if prior_strength is not None and prior_strength <= 0.0:
            raise ValueError(f"prior_strength must be positive or None, got {prior_strength}")
        if not 0.0 <= implied_weight <= 1.0:
            raise ValueError(f"implied_weight must lie in [0, 1], got {implied_weight}")
        if partition is None and name in ("partition", "combined"):
            raise ValueError(f"the estimator '{name}' reads log Z, which needs embeddings_NH")
        self.name = name
        self.partition = partition
        self.counts = DiscountedCounts(prompts, discount)
        self.prior_strength = PriorStrength(prior_strength)
        self.implied_weight = implied_weight
        self.truth_N: Floats = np.full(prompts, np.nan)
        self.mean_strength = self.prior_strength.value if name == "combined" else float("nan")
        """Number of completions that log Z's estimate was worth for the prompts of the last step, on average."""

    def with_name(self, name: EstimatorName) -> AccuracyEstimator:
        """Return the estimator of another name that shares log Z and the results."""
        other = copy.copy(self)
        other.name = name
        return other

    def mean(self, rows: Rows = ALL) -> Floats:
        """Return p̂ of the prompts in ``rows``, by default of all. The caller must not write to the array."""
        match self.name:
            case "partition":
                return self._log_z.accuracy(rows)
            case "combined":
                # Only where a prompt has results of its own does the mean depend on the prior's strength.
                mean_P = self._log_z.accuracy(rows).clip(*PRIOR_RANGE)
                own_P = (self.counts.right_N + self.counts.wrong_N)[rows] > 0.0
                mean_P[own_P] = self.beliefs(np.arange(len(self.truth_N))[rows][own_P]).mean_N
                return mean_P
            case _:
                return self.beliefs(rows).mean_N

    def beliefs(self, rows: Rows = ALL) -> Beliefs:
        """Return the beliefs about the given prompts. Each costs O(F²) with log Z in closed form."""
        match self.name:
            case "partition":
                mean_P = self._log_z.accuracy(rows)
                if isinstance(self._log_z, MlpPartition):
                    return points(mean_P)
                mean_P = mean_P.clip(*PRIOR_RANGE)
                return Beliefs(mean_P, self._strength(rows, mean_P))
            case "counts" | "bots":
                return self.counts.posterior(np.full(len(self.truth_N), FLAT_MEAN)[rows], FLAT_STRENGTH, rows)
            case "combined":
                mean_P = self._log_z.accuracy(rows).clip(*PRIOR_RANGE)
                return self.counts.posterior(mean_P, self._strength(rows, mean_P), rows)
            case "oracle":
                return points(self.truth_N[rows])
            case "none":
                return points(np.full(len(self.truth_N), np.nan)[rows])

    def draw(self, rng: np.random.Generator, rows: Rows = ALL) -> Floats:
        """Draw an accuracy for each given prompt; point estimates return their mean.

        With a log Z in closed form, only its weights w are drawn, once for all prompts, so similar prompts move
        together. Each value is the mean of a prompt's belief if this w were true. What the features cannot see is not
        drawn: a visit reveals it for one prompt only, and such noise made selection worse on development pools.
        """
        if not self._reads_variance:
            return self.beliefs(rows).draw(rng)
        assert isinstance(self._log_z, ClosedFormPartition)
        mean_P = self._log_z.draw(rng, rows).clip(*PRIOR_RANGE)
        if self.name == "partition":
            return mean_P
        return self.counts.posterior(mean_P, beta_strength(mean_P, self._log_z.unseen_variance), rows).mean_N

    def observe(
        self, rows_P: Indices, rewards_P: list[list[float]], step_P: Indices | int, weight_P: Floats | float = 1.0
    ) -> None:
        """Count the rewards of distinct prompts. A strength that is learned is first updated from them and the prior.

        ``step_P`` and ``weight_P`` are those of `DiscountedCounts.observe`.
        """
        right_P = np.array([np.sum(rewards) for rewards in rewards_P])
        trials_P = np.array([float(len(rewards)) for rewards in rewards_P])
        if self.name == "combined":
            variance_P = np.array([np.var(rewards, ddof=1) if len(rewards) > 1 else 0.0 for rewards in rewards_P])
            prior_P = self._log_z.accuracy(rows_P).clip(*PRIOR_RANGE)
            self.prior_strength.observe(prior_P, right_P / trials_P, variance_P, trials_P)
            self.mean_strength = float(self._strength(rows_P, prior_P).mean())
        if self.name == "bots":
            implied_N = implied_accuracy(self.mean(), rows_P, right_P / trials_P)
            evidence = weight_P * right_P, weight_P * trials_P
            add_evidence(self.counts, rows_P, *evidence, implied_N, self.implied_weight)
        else:
            self.counts.observe(rows_P, right_P, trials_P, step_P, weight_P)

    def stale_share(self, last_used_N: Indices, step: int) -> float:
        """Return the share of prompts whose estimate rests mostly on results older than ``STALE_STEPS`` steps.

        β·log Z is never stale, since a fit on other prompts updates it as well. Prompts that were never visited have no
        results (``selection/coverage`` reports them). Without estimates the share is NaN.
        """
        if self.name == "none":
            return float("nan")
        own_N = self.counts.right_N + self.counts.wrong_N
        least = {"counts": 0.0, "combined": self.mean_strength}.get(self.name, np.inf)
        return float(((own_N > least) & (step - last_used_N > STALE_STEPS)).mean())

    def state_dict(self) -> dict[str, Any]:
        """Return what is learned, except log Z, as tensors and numbers."""
        return {
            "right": torch.from_numpy(self.counts.right_N.copy()),
            "wrong": torch.from_numpy(self.counts.wrong_N.copy()),
            "newest": torch.from_numpy(self.counts.newest_N.copy()),
            "prior_strength": self.prior_strength.state_dict(),
            "mean_strength": self.mean_strength,
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Indices) -> None:
        """Restore the state of the prompts that are now in ``rows``; the others have no results."""
        self.counts.right_N[:] = self.counts.wrong_N[:] = 0.0
        self.counts.right_N[rows], self.counts.wrong_N[rows] = state["right"].numpy(), state["wrong"].numpy()
        self.counts.newest_N[:] = -1
        self.counts.newest_N[rows] = state["newest"].numpy()
        self.prior_strength.load_state_dict(state["prior_strength"])
        self.mean_strength = state["mean_strength"]

    @property
    def _log_z(self) -> Partition:
        assert self.partition is not None
        return self.partition

    @property
    def _reads_variance(self) -> bool:
        """Whether the belief's width comes from log Z's variance."""
        reads_z = self.name == "partition" or (self.name == "combined" and self.prior_strength.learned)
        return reads_z and isinstance(self.partition, ClosedFormPartition)

    def _strength(self, rows: Rows, mean_P: Floats) -> Floats:
        """Return the number of completions that log Z's estimate of each given prompt is worth."""
        if not self._reads_variance:
            return np.full(len(mean_P), self.prior_strength.value)
        assert isinstance(self._log_z, ClosedFormPartition)
        return beta_strength(mean_P, self._log_z.variance(rows) + self._log_z.unseen_variance)


def points(mean_P: Floats) -> Beliefs:
    """Return point estimates as beliefs."""
    return Beliefs(mean_P, np.full(len(mean_P), np.inf))


def beta_strength(mean_P: Floats, variance_P: Floats | float) -> Floats:
    """Return the strength m(1 − m)/v − 1 of Beta distributions with mean m and variance v, limited to a range."""
    strength_P: Floats = (mean_P * (1.0 - mean_P) / np.maximum(variance_P, TINY_VARIANCE) - 1.0).clip(*STRENGTH_RANGE)
    return strength_P


def default_partition(name: PartitionName, embeddings_NH: Tensor | None, beta: float) -> Partition | None:
    """Return a log Z of this name with default settings, on the device of the embeddings; None without embeddings."""
    if name not in get_args(PartitionName):
        raise ValueError(f"partition must be one of {', '.join(get_args(PartitionName))}, got '{name}'")
    if embeddings_NH is None:
        return None
    if name == "closed_form":
        return ClosedFormPartition(embeddings_NH, beta, device=embeddings_NH.device)
    return MlpPartition(LogPartition(embeddings_NH, beta).to(embeddings_NH.device), embeddings_NH)
