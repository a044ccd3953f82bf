"""Cost of a target and area under a curve."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.lab.measures import area, spent_to_reach

SPENT, ACCURACY = [0, 100, 300, 400], [0.2, 0.4, 0.8, 0.6]


@pytest.mark.parametrize(
    ("target", "spent"),
    [(0.1, 0.0), (0.2, 0.0), (0.3, 50.0), (0.4, 100.0), (0.5, 150.0), (0.8, 300.0), (0.81, 350.0)],
)
def test_the_cost_of_a_target_is_interpolated_at_the_first_crossing(target: float, spent: float) -> None:
    assert spent_to_reach(SPENT, ACCURACY, target, limit=350.0) == pytest.approx(spent)


def test_a_target_reached_beyond_the_budget_costs_the_whole_budget() -> None:
    assert spent_to_reach(SPENT, ACCURACY, 0.8, limit=250.0) == 250.0
    assert spent_to_reach([0, 400], [0.1, 0.2], 0.9, limit=350.0) == spent_to_reach([0, 350], [0.1, 0.2], 0.9, 350.0)


def test_the_area_is_a_sum_of_trapezoids_up_to_the_budget() -> None:
    assert area(SPENT, ACCURACY, 400) == pytest.approx((100 * 0.3 + 200 * 0.6 + 100 * 0.7) / 400)
    assert area(SPENT, ACCURACY, 200) == pytest.approx((100 * 0.3 + 100 * 0.5) / 200)
    assert area([0, 10], [0.5, 0.5], 10) == 0.5
    assert area([0, 8], [0.0, 0.8], 10) == pytest.approx(0.4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_target_never_costs_less(accuracy: list[float], first: float, second: float) -> None:
    spent = list(range(len(accuracy)))
    low, high = sorted((first, second))
    limit = spent[-1]
    assert spent_to_reach(spent, accuracy, low, limit) <= spent_to_reach(spent, accuracy, high, limit) + 1e-9
    assert min(accuracy) - 1e-9 <= area(spent, accuracy, limit) <= max(accuracy) + 1e-9
