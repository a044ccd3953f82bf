"""Posteriors equal their closed forms, the prior's strength is learned, and calibration is measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

from pacedrl.method.estimator import (
    FLAT_MEAN,
    FLAT_STRENGTH,
    Beliefs,
    DiscountedCounts,
    PriorStrength,
    calibration_metrics,
    pool_histogram,
    spearman,
)

VISITS = st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda v: (min(v), max(v))), max_size=6)


@given(VISITS, st.floats(0, 1))
def test_counts_on_a_flat_prior_are_mopps(visits: list[tuple[int, int]], discount: float) -> None:
    """α ← λα + (1 − λ)α⁰ + s and β ← λβ + (1 − λ)β⁰ + n − s, from α⁰ = β⁰ = 1."""
    counts = DiscountedCounts(2, discount)
    alpha = beta = 1.0
    for step, (right, trials) in enumerate(visits):
        counts.observe(np.array([1]), np.array([float(right)]), np.array([float(trials)]), step)
        alpha = discount * alpha + (1 - discount) + right
        beta = discount * beta + (1 - discount) + trials - right
    posterior = counts.posterior(np.full(2, FLAT_MEAN), FLAT_STRENGTH)
    assert posterior.strength_N[1] == pytest.approx(alpha + beta)
    assert posterior.mean_N[1] == pytest.approx(alpha / (alpha + beta))
    assert (posterior.mean_N[0], posterior.strength_N[0]) == (0.5, 2.0)  # never visited: the prior


def test_the_prior_fades_as_results_come_in() -> None:
    counts = DiscountedCounts(1, discount=1.0)
    for visit in range(1, 4):
        counts.observe(np.array([0]), np.array([8.0]), np.array([8.0]), visit)
        posterior = counts.posterior(np.array([0.2]), 4.0)
        assert posterior.mean_N[0] == pytest.approx((4 * 0.2 + 8 * visit) / (4 + 8 * visit))


def test_a_weak_prior_after_results_of_one_kind_can_still_be_drawn_from() -> None:
    beliefs = Beliefs(np.array([1.0, 0.0]), np.array([8.0, 8.0]))
    assert beliefs.draw(np.random.default_rng(0)) == pytest.approx([1.0, 0.0])


def test_a_draw_of_a_point_estimate_is_the_estimate() -> None:
    beliefs = Beliefs(np.array([-0.1, 0.4]), np.full(2, np.inf))
    assert beliefs.draw(np.random.default_rng(0)).tolist() == [-0.1, 0.4]


def binary(rng: np.random.Generator, accuracy_P: np.ndarray) -> np.ndarray:
    return (rng.random((len(accuracy_P), 8)) < accuracy_P[:, None]).astype(float)


def graded(rng: np.random.Generator, accuracy_P: np.ndarray) -> np.ndarray:
    """Return the share of five tests passed."""
    return rng.binomial(5, accuracy_P[:, None], size=(len(accuracy_P), 8)) / 5


@pytest.mark.parametrize("rewards_of", [binary, graded])
@pytest.mark.parametrize("truth", [2.0, 8.0, 40.0])
def test_the_prior_strength_is_learned_from_how_far_the_prior_is_off(
    truth: float, rewards_of: Callable[[np.random.Generator, np.ndarray], np.ndarray]
) -> None:
    """κ is recovered from accuracies drawn from Beta(κ·m, κ·(1 − m)) and observed through 8 rollouts."""
    rng = np.random.default_rng(0)
    strength = PriorStrength(None)
    for _ in range(60):
        mean_P = rng.uniform(0.2, 0.8, size=400)
        accuracy_P = rng.beta(truth * mean_P, truth * (1 - mean_P))
        rewards_PG = rewards_of(rng, accuracy_P)
        strength.observe(mean_P, rewards_PG.mean(axis=1), rewards_PG.var(axis=1, ddof=1), np.full(400, 8.0))
    assert strength.value == pytest.approx(truth, rel=0.2)


def test_a_fixed_prior_strength_stays_and_a_learned_one_is_restored() -> None:
    fixed, learned, restored = PriorStrength(4.0), PriorStrength(None), PriorStrength(None)
    for strength in (fixed, learned):
        strength.observe(np.array([0.5]), np.array([1.0]), np.array([0.0]), np.array([8.0]))
    assert fixed.value == 4.0
    assert learned.value == 1.0  # as far off as can be: the least it may become
    restored.load_state_dict(learned.state_dict())
    for strength in (learned, restored):
        strength.observe(np.array([0.5, 0.4]), np.array([0.5, 0.5]), np.array([0.28, 0.28]), np.array([8.0, 8.0]))
    unseen = PriorStrength(None)
    unseen.observe(np.array([0.5]), np.array([1.0]), np.array([0.0]), np.array([1.0]))
    assert unseen.value == 4.0  # one reward says nothing of its variance
    assert restored.state_dict() == learned.state_dict()


def test_mae_and_bias() -> None:
    metrics = calibration_metrics(np.array([0.2, 0.8, 0.5]), np.array([0.0, 1.0, 0.25]))
    assert metrics["accuracy/mae"] == pytest.approx((0.2 + 0.2 + 0.25) / 3)
    assert metrics["accuracy/bias"] == pytest.approx((0.2 - 0.2 + 0.25) / 3)
    assert metrics["accuracy/estimate_mean"] == pytest.approx(0.5)
    assert metrics["accuracy/observed_mean"] == pytest.approx(1.25 / 3)
    assert metrics["accuracy/spearman"] == pytest.approx(1.0)


def test_spearman_with_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 7.0, 5.0, 8.0])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )


def test_spearman_is_about_order_only() -> None:
    x = np.array([0.1, 0.2, 0.7, 0.9])
    assert spearman(x, np.exp(9 * x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert math.isnan(spearman(x, np.full(4, 0.5)))
    assert math.isnan(spearman(x, np.full(4, np.nan)))


def test_the_histogram_of_the_pool_counts_what_lies_outside() -> None:
    pool = pool_histogram(np.array([-0.2, 0.0, 0.04, 0.05, 0.5, 0.999, 1.0, 1.01, 3.0]))
    assert pool is not None
    assert (pool["below"], pool["above"]) == (1, 2)
    assert {i: count for i, count in enumerate(pool["counts"]) if count} == {0: 2, 1: 1, 10: 1, 19: 2}
    assert pool_histogram(np.full(3, np.nan)) is None


def beta_function(a: float, b: float) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


@given(st.floats(0.05, 30), st.floats(0.05, 30), st.integers(1, 32))
def test_a_mixed_group_has_its_beta_binomial_probability(alpha: float, beta: float, group_size: int) -> None:
    """E[p^G] = B(α + G, β)/B(α, β)."""
    beliefs = Beliefs(np.array([alpha / (alpha + beta)]), np.array([alpha + beta]))
    one = beta_function(alpha + group_size, beta) / beta_function(alpha, beta)
    zero = beta_function(alpha, beta + group_size) / beta_function(alpha, beta)
    assert beliefs.mixed(group_size)[0] == pytest.approx(1.0 - one - zero, abs=1e-9)
    assert beliefs.mixed(2) == pytest.approx(2 * beliefs.learnability())


def test_mixed_groups_of_points_and_distributions_side_by_side() -> None:
    beliefs = Beliefs(np.array([0.5, 0.5, 0.25, -0.1, 1.2]), np.array([np.inf, 2.0, np.inf, np.inf, np.inf]))
    expected = [
        1 - 2 / 2**8,
        1 - 2 / 9,
        1 - 0.25**8 - 0.75**8,
        0.0,
        0.0,
    ]  # all outcomes of Beta(1, 1) are equally likely
    assert beliefs.mixed(8) == pytest.approx(expected)
    assert beliefs.mixed(1) == pytest.approx(np.zeros(5))


@given(st.floats(0.001, 0.999), st.floats(0.5, 120), st.sampled_from([0.5, 0.9, 0.99]))
def test_intervals_are_the_quantiles_of_the_beta_distribution(mean: float, strength: float, share: float) -> None:
    beliefs = Beliefs(np.array([mean]), np.array([strength]))
    (low,), (high,) = beliefs.interval(share)
    exact = beta_distribution(mean * strength, (1 - mean) * strength)
    assert (low, high) == pytest.approx(exact.ppf([(1 - share) / 2, (1 + share) / 2]), abs=2e-3)


def test_the_interval_of_a_point_has_no_width() -> None:
    low, high = Beliefs(np.array([0.2, 1.1]), np.full(2, np.inf)).interval(0.9)
    assert low.tolist() == high.tolist() == [0.2, 1.1]
