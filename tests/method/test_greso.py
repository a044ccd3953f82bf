"""GRESO's state: runs of equal groups, epochs skipped, and exploration probabilities that adapt."""

from __future__ import annotations

import numpy as np
import pytest

from pacedrl.method.greso import EXPLORATION_RANGE, TARGETS, ZeroVarianceSkips

RIGHT, WRONG, MIXED, EQUAL = [1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.5, 0.5]


def visit(skips: ZeroVarianceSkips, *groups: list[float], draw: float = 0.0) -> None:
    """End a step that sampled the first prompts, one for each group."""
    rows = np.arange(len(groups))
    skips.observe(rows, rows, groups, np.random.default_rng(0))
    skips.draw_N[rows] = draw


def test_the_probability_of_a_skip_is_one_less_a_power_of_the_exploration_probability() -> None:
    skips = ZeroVarianceSkips(4)
    skips.exploration = {"easy": 0.5, "hard": 0.8}
    skips.run_N[:] = [0, 3, -2, 40]
    assert skips.skip_probability() == pytest.approx([0.0, 1 - 0.5**3, 1 - 0.8**2, 0.99])


def test_a_run_ends_with_a_mixed_group_and_starts_anew_with_the_other_kind() -> None:
    skips, seen = ZeroVarianceSkips(1), []
    for group in (RIGHT, RIGHT, WRONG, WRONG, EQUAL, MIXED, RIGHT, [1.0], WRONG):
        visit(skips, group)
        seen.append(int(skips.run_N[0]))
    assert seen == [1, 2, -1, -2, -3, 0, 1, 1, -1]  # one judged completion says nothing


def test_the_number_of_skipped_epochs_is_that_of_a_draw_in_every_epoch() -> None:
    """P(at least k skips) = skip^k."""
    skips = ZeroVarianceSkips(40_000)
    skips.run_N[:] = 2
    skips.draw_N[:] = np.random.default_rng(0).random(40_000)
    skipped_N = skips.next_epoch()
    for k in range(1, 8):
        assert (skipped_N >= k).mean() == pytest.approx(0.75**k, abs=0.01)  # about 4 standard deviations


def test_a_visit_ends_the_prompts_epoch_after_those_that_it_skipped() -> None:
    skips = ZeroVarianceSkips(2)
    visit(skips, RIGHT, MIXED, draw=0.7)  # 0.3 ≤ 0.5, but 0.3 > 0.5²: one epoch is skipped
    assert skips.next_epoch().tolist() == [1 + 1, 1]
    skips.observe(np.array([1]), np.array([1]), [MIXED], np.random.default_rng(0))
    assert skips.next_epoch().tolist() == [2, 2]
    visit(skips, MIXED, MIXED)
    assert skips.next_epoch().tolist() == [3, 3]


def test_a_prompt_sampled_long_before_it_is_due_does_not_wait_any_more() -> None:
    skips = ZeroVarianceSkips(2)
    visit(skips, WRONG, MIXED, draw=0.999)
    assert skips.next_epoch().tolist() == [1 + 10, 1]  # 0.001 ≤ 0.51¹⁰
    visit(skips, MIXED, MIXED)
    assert skips.next_epoch().tolist() == [3, 2]


def test_a_lower_exploration_probability_postpones_a_prompt_at_once() -> None:
    skips = ZeroVarianceSkips(1)
    visit(skips, WRONG, draw=0.9)
    assert skips.next_epoch()[0] == 1 + 3  # 0.1 ≤ 0.5³
    skips.exploration["hard"] = 0.2
    assert skips.next_epoch()[0] == 1 + 10  # 0.1 ≤ 0.8¹⁰
    skips.exploration["easy"] = 0.9
    assert skips.next_epoch()[0] == 1 + 10


def test_exploration_moves_towards_the_targets_after_the_first_epoch() -> None:
    skips = ZeroVarianceSkips(6)
    visit(skips, RIGHT, WRONG)
    assert skips.exploration == {"easy": 0.5, "hard": 0.5}  # four prompts were never sampled
    visit(skips, *[MIXED] * 6)
    assert skips.exploration == pytest.approx({"easy": 0.51, "hard": 0.51})
    visit(skips, RIGHT, *[MIXED] * 5)  # a sixth is more than 1/12, and none is wrong
    assert skips.exploration == pytest.approx({"easy": 0.50, "hard": 0.52})
    visit(skips, WRONG, *[MIXED] * 5)  # exactly the target
    assert skips.exploration == pytest.approx({"easy": 0.51, "hard": 0.51})
    assert sum(TARGETS.values()) == pytest.approx(0.25)


@pytest.mark.parametrize(("group", "bound"), [(RIGHT, EXPLORATION_RANGE[0]), (MIXED, EXPLORATION_RANGE[1])])
def test_exploration_stays_in_its_range(group: list[float], bound: float) -> None:
    skips = ZeroVarianceSkips(1)
    for _ in range(60):
        visit(skips, group)
    assert skips.exploration["easy"] == bound


def test_a_step_without_verdicts_only_ends_the_epoch() -> None:
    skips = ZeroVarianceSkips(2)
    visit(skips, RIGHT, RIGHT)
    before = skips.state_dict()
    skips.observe(np.array([1]), np.array([], dtype=np.int64), [], np.random.default_rng(0))
    assert skips.run_N.tolist() == before["run"].tolist()
    assert skips.exploration == before["exploration"]
    assert skips.epoch_N.tolist() == [1, 2]


def test_the_state_returns_and_new_prompts_are_due_first() -> None:
    skips = ZeroVarianceSkips(3)
    for _ in range(3):
        visit(skips, RIGHT, WRONG, MIXED, draw=0.6)
    restored = ZeroVarianceSkips(4)
    restored.load_state_dict(skips.state_dict(), np.array([3, 1, 0]))
    assert restored.next_epoch()[[3, 1, 0]].tolist() == skips.next_epoch().tolist()
    assert restored.exploration == skips.exploration
    assert restored.next_epoch()[2] == skips.epoch_N.min()
