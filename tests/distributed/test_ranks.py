"""How work is divided among processes. end_to_end/test_e2e_ranks.py tests the collectives between real processes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.distributed.ranks import Ranks


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_parts_cover_everything_once_in_order_and_are_about_equal(costs: list[int], count: int) -> None:
    parts = [costs[Ranks(i, count).own_slice(costs)] for i in range(count)]
    assert [cost for part in parts for cost in part] == costs
    if costs:
        fair = sum(costs) / count
        assert all(sum(part) <= fair + max(costs) for part in parts)


def test_items_of_equal_cost_are_divided_equally() -> None:
    assert [len(range(12)[Ranks(i, 4).own_slice([1.0] * 12)]) for i in range(4)] == [3, 3, 3, 3]


def test_a_single_process_needs_no_collectives() -> None:
    ranks = Ranks()
    assert ranks.main
    assert (ranks.broadcast("a"), ranks.gather("a")) == ("a", ["a"])
    assert ranks.map([1, 2, 3], lambda part: [2 * value for value in part]) == [2, 4, 6]
    with pytest.raises(ValueError, match="no"):
        ranks.run_on_main(lambda: (_ for _ in ()).throw(ValueError("no")))
