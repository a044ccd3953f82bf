"""Leases: prompts under way are not taken again, unless too few others remain or their lease expires."""

from __future__ import annotations

import numpy as np
import pytest
from bandits import Bandit, scheduler_for
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.method import Rollouts
from pacedrl.method.leases import Leases

PROMPTS = 8
EVENTS = st.lists(
    st.tuples(st.sampled_from(["take", "close", "release", "pass"]), st.sets(st.integers(0, PROMPTS - 1))), max_size=30
)


@given(EVENTS, st.integers(1, 4), st.integers(0, PROMPTS))
def test_leases_are_what_was_taken_less_what_was_closed_or_is_too_old(
    events: list[tuple[str, set[int]]], steps: int, at_least: int
) -> None:
    leases, step, expected = Leases(steps), 0, list[tuple[int, int]]()
    for event, prompts in events:
        rows = np.array(sorted(prompts), dtype=np.int64)
        if event == "pass":
            step += 1
            leases.expire(step)
            expected = [(row, taken) for row, taken in expected if taken + steps > step]
        else:
            getattr(leases, event)(*([rows, step] if event == "take" else [rows]))
            for row in rows.tolist():
                own = [lease for lease in expected if lease[0] == row]
                if event == "take":
                    expected.append((row, step))
                elif own and event == "close":
                    expected.remove(own[0])
                elif own:
                    del expected[len(expected) - 1 - expected[::-1].index(own[-1])]
    assert leases.rows == [row for row, _ in expected]
    assert len(leases) == len(expected)
    free = leases.free(PROMPTS, at_least)
    newest = {row: place for place, (row, _) in enumerate(expected)}
    others = set(range(PROMPTS)) - newest.keys()
    added = sorted(newest, key=lambda row: newest[row])[: max(at_least - len(others), 0)]
    assert np.flatnonzero(free).tolist() == sorted(others | set(added))
    again = Leases(steps)
    reversed_rows = np.arange(PROMPTS)[::-1]
    again.load_state_dict(leases.state_dict(), reversed_rows)  # the prompts were reordered
    assert again.rows == [PROMPTS - 1 - row for row, _ in expected]
    assert [taken for _, taken in again.state_dict()] == [taken for _, taken in expected]


def test_a_lease_must_last() -> None:
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        Leases(0)


@pytest.mark.parametrize("selection", ["nearest", "uniform", "noise"])
def test_prompts_under_way_are_not_taken_again(selection: str) -> None:
    bandit = Bandit(20)
    scheduler = scheduler_for(bandit, selection=selection, cooldown_steps=2, explore_fraction=0.3)
    first, expected = scheduler.take(8), scheduler.select(8)
    second = scheduler.take(8)
    assert second == expected
    assert len({*first, *second}) == 16
    assert scheduler.leased() == [*first, *second]
    assert sorted([*scheduler.take(4), *first, *second]) == sorted(bandit.keys)


def test_released_prompts_are_as_if_they_had_not_been_taken() -> None:
    scheduler = scheduler_for(Bandit(40), selection="noise")
    first, second = scheduler.take(8), scheduler.take(8)
    scheduler.release(second)
    assert scheduler.leased() == first
    assert scheduler.take(8) == second
    scheduler.release([*first, *second])
    assert scheduler.take(8) == first


def test_batches_of_one_step_have_different_random_numbers() -> None:
    scheduler = scheduler_for(Bandit(1000), selection="noise")
    batches = [set(scheduler.take(100)) for _ in range(2)]
    order = np.random.default_rng([0, 0]).random(1000).argsort()
    assert batches[0] == {scheduler.keys[i] for i in order[:100]}
    # with the same numbers the second batch would be the next hundred
    assert len(batches[1] & {scheduler.keys[i] for i in order[100:200]}) < 40


def test_too_few_others_are_filled_up_with_the_longest_leased() -> None:
    scheduler = scheduler_for(Bandit(10))
    first, second = scheduler.take(4), scheduler.take(4)
    third = scheduler.take(5)
    assert {*third} == {*scheduler.keys} - {*first[3:], *second}
    assert scheduler.leased() == [*first, *second, *third]
    assert {*scheduler.select(5)} == {first[3], *second}
    scheduler.release(third)
    assert scheduler.take(5) == third
    with pytest.raises(ValueError, match="cannot select 11 prompts from 10"):
        scheduler.take(11)
    assert scheduler.leased() == [*first, *second, *third]
    scheduler.observe(Rollouts(first, [1.0] * 4))
    assert scheduler.leased() == [*second, *third]


def test_a_lease_ends_with_any_result_and_expires_without_one() -> None:
    bandit = Bandit(30)
    scheduler = scheduler_for(bandit, lease_steps=2)
    first = scheduler.take(4)
    scheduler.observe(Rollouts(first[:1], [np.nan]))  # what could not be judged does not come again
    assert scheduler.leased() == first[1:]
    second = scheduler.take(4)
    assert not {*first[1:]} & {*second}
    scheduler.observe(bandit.rollouts(second[2:]))
    assert scheduler.leased() == second[:2]
    scheduler.observe(bandit.rollouts(first))  # late, but not lost
    assert scheduler.leased() == []
    evidence_N = scheduler.estimator.counts.right_N + scheduler.estimator.counts.wrong_N
    assert evidence_N[[scheduler.index[key] for key in [*first, *second]]].tolist() == [8] * 4 + [0, 0, 8, 8]


@pytest.mark.parametrize("estimator", ["partition", "combined"])
def test_in_lock_step_taking_is_selecting(estimator: str) -> None:
    first, second = Bandit(40), Bandit(40)
    options = {"estimator": estimator, "cooldown_steps": 1, "explore_fraction": 0.25}
    taking, selecting = scheduler_for(first, **options), scheduler_for(second, **options)
    for _ in range(6):
        keys = taking.take(8)
        assert keys == selecting.select(8)
        assert taking.observe(first.rollouts(keys)) == pytest.approx(
            selecting.observe(second.rollouts(keys)), abs=0, nan_ok=True
        )
    assert np.array_equal(taking.accuracy_estimates(), selecting.accuracy_estimates())
    assert taking.leased() == []
