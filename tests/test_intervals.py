"""Intervals over a few seeds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats  # noqa: F401  here, so that no example exceeds its time limit by importing it
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.intervals import mean_interval, paired_difference

SEEDS = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def test_one_seed_has_no_interval() -> None:
    interval = mean_interval([0.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, None, None)
    assert not interval.excludes_zero
    with pytest.raises(ValueError, match="no seeds"):
        mean_interval([])


@given(SEEDS)
def test_intervals_contain_the_mean_and_lie_within_the_range_of_the_seeds(values: list[float]) -> None:
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(np.mean(values))
    assert interval.low is not None
    assert interval.high is not None
    slack = 1e-9
    assert interval.low <= interval.mean + slack
    assert interval.mean - slack <= interval.high
    if len(values) >= 5:
        assert min(values) - slack <= interval.low
        assert interval.high <= max(values) + slack


@given(SEEDS, st.floats(0.1, 5), st.floats(-5, 5))
def test_intervals_shift_and_scale_with_the_values(values: list[float], scale: float, shift: float) -> None:
    interval = mean_interval(values)
    moved = mean_interval([scale * value + shift for value in values])
    for end in ("mean", "low", "high"):
        assert getattr(moved, end) == pytest.approx(scale * getattr(interval, end) + shift, abs=1e-6)


@pytest.mark.parametrize(("seeds", "least"), [(2, 0.92), (3, 0.92), (4, 0.92), (5, 0.92), (10, 0.93)])
def test_95_percent_intervals_cover_about_95_percent(seeds: int, least: float) -> None:
    """The plain percentile interval, computed beside it, covers less: that is why it is expanded."""
    rng = np.random.default_rng(1)
    covered = plain = 0
    trials = 400
    for _ in range(trials):
        values = rng.normal(size=seeds)
        interval = mean_interval(values.tolist())
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0.0 <= interval.high
        means = values[rng.integers(seeds, size=(1000, seeds))].mean(axis=1)
        plain += np.quantile(means, 0.025) <= 0.0 <= np.quantile(means, 0.975)
    assert least <= covered / trials <= 0.98
    assert plain < covered
    assert seeds > 5 or plain / trials < 0.88


def test_two_seeds_give_students_interval() -> None:
    interval = mean_interval([1.0, 3.0])  # s/√n = 1
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.0, 2.0 - 12.706, 2.0 + 12.706))


def test_paired_differences_remove_what_seeds_have_in_common() -> None:
    hard = [0.0, 5.0, -3.0, 9.0, 1.0]  # seeds differ far more than methods do
    better = [value + 1.0 + noise for value, noise in zip(hard, (0.1, -0.1, 0.0, 0.05, -0.05), strict=True)]
    difference = paired_difference(better, hard)
    assert difference.excludes_zero
    assert difference.mean == pytest.approx(1.0)
    assert not paired_difference(hard, hard).excludes_zero
    assert not paired_difference([1.0, -1.0, 1.0, -1.0], [0.0] * 4).excludes_zero
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])
