"""Cost of a target and area under a curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.lab.measures import area, spent_to_reach

SPENT, ACCURACY = [0, 100, 300, 400], [0.2, 0.4, 0.8, 0.6]


@pytest.mark.parametrize(
    ("target", "spent"),
    [(0.1, 0.0), (0.2, 0.0), (0.3, 50.0), (0.4, 100.0), (0.5, 150.0), (0.8, 300.0), (0.81, 400.0)],
)
def test_the_first_time_a_target_is_reached_is_read_off_the_curve(target: float, spent: float) -> None:
    assert spent_to_reach(SPENT, ACCURACY, target) == pytest.approx(spent)


def test_area_is_that_of_trapezoids_over_the_width() -> None:
    assert area(SPENT, ACCURACY) == pytest.approx((100 * 0.3 + 200 * 0.6 + 100 * 0.7) / 400)
    assert area([0, 10], [0.5, 0.5]) == 0.5


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_costs_less(accuracy: list[float], first: float, second: float) -> None:
    spent = list(range(len(accuracy)))
    low, high = sorted((first, second))
    assert spent_to_reach(spent, accuracy, low) <= spent_to_reach(spent, accuracy, high) + 1e-9
    assert min(accuracy) - 1e-9 <= area(spent, accuracy) <= max(accuracy) + 1e-9
