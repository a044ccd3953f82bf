"""How good the accuracy estimates are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CALIBRATION = (
    "accuracy/estimate_mean",
    "accuracy/observed_mean",
    "accuracy/mae",
    "accuracy/bias",
    "accuracy/spearman",
)
"""The names of `calibration_metrics`."""


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


def spearman(first_P: Floats, second_P: Floats) -> float:
    """Spearman's rank correlation with average ranks for ties; NaN where either side is constant."""
    a, b = _centred_ranks(first_P), _centred_ranks(second_P)
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def _centred_ranks(values_P: Floats) -> Floats:
    _, inverse, counts = np.unique(values_P, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average = last - (counts - 1) / 2
    ranks: Floats = average[inverse] - average[inverse].mean()
    return ranks
