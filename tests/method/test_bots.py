"""BOTS' update: interpolation, implied evidence, and the counts of all prompts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pacedrl.method.bots import add_evidence, implied_accuracy, interpolated_accuracy
from pacedrl.method.estimator import DiscountedCounts

accuracies = arrays(np.float64, 6, elements=st.floats(0.0, 1.0))


def test_interpolation_between_two_reference_policies_by_hand() -> None:
    """On the sampled prompts the references have means 0.2 and 0.6; the observed mean 0.3 lies a quarter between."""
    weak, strong = np.array([0.1, 0.3, 0.0, 0.4]), np.array([0.5, 0.7, 0.8, 0.4])
    implied = interpolated_accuracy(weak, strong, np.array([0, 1]), np.array([0.25, 0.35]))
    assert implied == pytest.approx([0.2, 0.4, 0.2, 0.4])
    better_than_both = interpolated_accuracy(weak, strong, np.array([0, 1]), np.array([1.0, 1.0]))
    assert better_than_both == pytest.approx([0.9, 1.0, 1.0, 0.4])
    assert interpolated_accuracy(weak, weak, np.array([0]), np.array([0.9])) == pytest.approx(weak)


def test_all_estimates_follow_those_of_the_steps_prompts() -> None:
    estimate, rows = np.array([0.4, 0.6, 0.0, 0.2, 1.0]), np.array([0, 1])
    # The mean rises from 0.5 to 0.75: half of what was missing.
    assert implied_accuracy(estimate, rows, np.array([0.5, 1.0])) == pytest.approx([0.7, 0.8, 0.5, 0.6, 1.0])
    # It falls to 0.25: half of what was there.
    assert implied_accuracy(estimate, rows, np.array([0.0, 0.5])) == pytest.approx([0.2, 0.3, 0.0, 0.1, 0.5])
    assert implied_accuracy(estimate, rows, np.array([0.7, 0.3])) == pytest.approx(estimate)


@given(accuracies, arrays(np.float64, 3, elements=st.floats(0.0, 1.0)))
def test_implied_accuracies_agree_with_what_was_observed_and_keep_their_order(
    estimate: np.ndarray, observed: np.ndarray
) -> None:
    rows = np.array([0, 2, 4])
    implied = implied_accuracy(estimate, rows, observed)
    assert ((implied >= 0.0) & (implied <= 1.0)).all()
    known = 1e-6 < estimate[rows].mean() < 1 - 1e-6
    assert implied[rows].mean() == pytest.approx(observed.mean() if known else implied[rows].mean(), abs=1e-6)
    assert (np.diff(implied[np.argsort(estimate)]) >= -1e-12).all()


@given(st.floats(0, 1), st.floats(0, 1), accuracies, st.integers(0, 50))
def test_the_update_is_the_papers(discount: float, weight: float, implied: np.ndarray, seed: int) -> None:
    """α ← (1 − λ)α + λ + (1 − ρ)s + ρ·s̃ with α⁰ = 1, and likewise β."""
    rng = np.random.default_rng(seed)
    counts, rows = DiscountedCounts(6, discount), np.array([1, 4])
    counts.right_N[:], counts.wrong_N[:] = rng.uniform(0, 5, (2, 6))
    alpha, beta = 1 + counts.right_N, 1 + counts.wrong_N
    right, trials = np.array([3.0, 0.5]), np.array([4.0, 2.0])
    explicit, failed, pseudo = np.zeros(6), np.zeros(6), 3.0 * implied
    explicit[rows], failed[rows], pseudo[rows] = right, trials - right, right
    missed = 3.0 - pseudo
    missed[rows] = trials - right
    alpha = discount * alpha + (1 - discount) + (1 - weight) * explicit + weight * pseudo
    beta = discount * beta + (1 - discount) + (1 - weight) * failed + weight * missed
    add_evidence(counts, rows, right, trials, implied, weight)
    assert 1 + counts.right_N == pytest.approx(alpha)
    assert 1 + counts.wrong_N == pytest.approx(beta)


def test_a_prompt_that_is_never_sampled_is_as_strong_as_its_implied_evidence() -> None:
    """The strength converges to 2 + ρ·n/λ, and the mean to that of flat prior and implied evidence."""
    counts, rows = DiscountedCounts(2, 0.9), np.array([0])
    for _ in range(200):
        add_evidence(counts, rows, np.array([4.0]), np.array([8.0]), np.array([0.5, 0.25]), 0.1)
    beliefs = counts.posterior(np.full(2, 0.5), 2.0)
    assert beliefs.strength_N == pytest.approx([2 + 8 / 0.1, 2 + 0.1 * 8 / 0.1])
    assert beliefs.mean_N == pytest.approx([0.5, (1 + 8 * 0.25) / 10])
