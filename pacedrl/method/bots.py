"""BOTS (arXiv 2510.26374): implied evidence about the prompts that a step did not sample."""

from __future__ import annotations

import numpy as np

from pacedrl.method.estimator import DiscountedCounts, Floats, Indices


def interpolated_accuracy(weak_N: Floats, strong_N: Floats, rows_P: Indices, observed_P: Floats) -> Floats:
    """Return every prompt's accuracy as implied by the observed prompts, clip(weak + μ·(strong − weak), 0, 1): [N].

    ``weak_N`` and ``strong_N`` are the accuracies of two reference policies. μ is where the mean of the observed
    accuracies lies between the means of theirs on the same prompts; it is 0 if the strong mean is not the larger.
    """
    weak, strong = weak_N[rows_P].mean(), strong_N[rows_P].mean()
    position = (observed_P.mean() - weak) / (strong - weak) if strong > weak else 0.0
    implied_N: Floats = (weak_N + position * (strong_N - weak_N)).clip(0.0, 1.0)
    return implied_N


def implied_accuracy(estimate_N: Floats, rows_P: Indices, observed_P: Floats) -> Floats:
    """Return every prompt's accuracy as implied by a step, without reference policies: [N].

    The paper interpolates between the measured accuracies of a weak and a strong model. Departure: we have none, so we
    interpolate between p̂, the estimates before the step, and 1 if the step's prompts were solved more often than
    estimated, or between 0 and p̂ if less often. All estimates therefore rise or fall with those of the step's prompts.
    The paper also averages μ over steps; we do not, because our μ is the change in one step.
    """
    if observed_P.mean() >= estimate_N[rows_P].mean():
        return interpolated_accuracy(estimate_N, np.ones_like(estimate_N), rows_P, observed_P)
    return interpolated_accuracy(np.zeros_like(estimate_N), estimate_N, rows_P, observed_P)


def add_evidence(
    counts: DiscountedCounts, rows_P: Indices, right_P: Floats, trials_P: Floats, implied_N: Floats, weight: float
) -> None:
    """Update the counts of all prompts: α ← (1 − λ)·α + λ·α⁰ + (1 − ρ)·s + ρ·s̃, and likewise β.

    1 − λ is the discount of ``counts``, which holds α − α⁰ and β − β⁰; ρ is ``weight``. The explicit evidence s of the
    prompts in ``rows_P`` is the number of right completions, and s̃ is the same number, as in the authors' code. The
    others have s = 0, and s̃ = n·p̃ with the mean number n of completions and the implied accuracy p̃. Unlike
    `DiscountedCounts.observe`, this discounts the counts of all prompts, whether they were sampled or not.
    """
    trials_N = np.full(len(implied_N), weight * trials_P.mean())
    right_N = trials_N * implied_N
    trials_N[rows_P], right_N[rows_P] = trials_P, right_P
    counts.right_N[:] = counts.discount * counts.right_N + right_N
    counts.wrong_N[:] = counts.discount * counts.wrong_N + trials_N - right_N
