"""Nearest-to-target selection, cooldown and exploration, as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pacedrl.method.selection import NEVER, nearest_target, rested, select

estimates = arrays(np.float64, st.integers(1, 60), elements=st.floats(-0.5, 1.5))


@given(estimates, st.floats(0, 1), st.data())
def test_nearest_target_is_exact(estimate: np.ndarray, target: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(estimate)))
    chosen = nearest_target(estimate, target, count, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == count
    distance = np.abs(estimate - target)
    assert sorted(distance[chosen]) == sorted(distance)[:count]


def test_ties_are_broken_at_random_and_evenly() -> None:
    hits = np.zeros(10)
    for seed in range(2000):
        hits[nearest_target(np.full(10, 0.5), 0.5, 3, np.random.default_rng(seed))] += 1
    assert hits == pytest.approx(np.full(10, 600), abs=90)  # about 4 standard deviations


def test_the_order_of_the_chosen_says_nothing_of_their_index() -> None:
    first = [nearest_target(np.full(10, 0.5), 0.5, 10, np.random.default_rng(seed))[0] for seed in range(300)]
    assert len(set(first)) == 10


@pytest.mark.parametrize("bad", [np.array([0.5, np.nan]), np.array([0.5])])
def test_refuses_nan_and_too_few(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"NaN|cannot select"):
        nearest_target(bad, 0.5, 2, np.random.default_rng(0))


@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 20)), st.integers(0, 30), st.data())
def test_cooldown_rests_prompts_but_never_starves_the_batch(
    last_used: np.ndarray, cooldown: int, data: st.DataObject
) -> None:
    step = 21
    needed = data.draw(st.integers(0, len(last_used)))
    candidates = rested(last_used, step, cooldown, needed)
    assert len(set(candidates.tolist())) == len(candidates) >= needed
    resting = last_used >= step - cooldown
    free = np.flatnonzero(~resting)
    assert set(free) <= set(candidates)
    early = set(candidates) - set(free)
    if early:  # only as many as needed, and those that rested longest
        assert len(candidates) == needed
        left = np.flatnonzero(resting & ~np.isin(np.arange(len(last_used)), candidates))
        assert max(last_used[list(early)]) <= min(last_used[left], default=step)


def test_without_cooldown_a_prompt_may_recur_at_once() -> None:
    assert rested(np.array([4, NEVER]), step=5, cooldown_steps=0, at_least=1).tolist() == [0, 1]
    assert rested(np.array([4, NEVER]), step=5, cooldown_steps=1, at_least=1).tolist() == [1]


def pick(explore: float, count: int = 10, seed: int = 0, cooldown: int = 0) -> np.ndarray:
    return select(
        np.linspace(0, 1, 101),
        np.full(101, NEVER),
        step=0,
        count=count,
        target=0.5,
        explore_fraction=explore,
        cooldown_steps=cooldown,
        rng=np.random.default_rng(seed),
    )


def test_no_exploration_is_pure_greed() -> None:
    assert set(pick(0.0, count=11)) == set(range(45, 56))


def test_exploration_draws_its_share_uniformly_from_the_rest() -> None:
    hits = np.zeros(101)
    for seed in range(500):
        chosen = pick(0.3, seed=seed)
        assert len(set(chosen)) == 10
        assert {47, 48, 49, 50, 51, 52, 53} <= set(chosen)
        hits[chosen] += 1
    far = hits[np.abs(np.arange(101) - 50) > 5]
    assert far.mean() == pytest.approx(500 * 3 / 94, rel=0.1)
    assert far.max() < 4 * far.mean()


def test_exploration_of_everything_is_uniform() -> None:
    hits = np.zeros(101)
    for seed in range(1000):
        hits[pick(1.0, seed=seed)] += 1
    assert hits == pytest.approx(np.full(101, 1000 * 10 / 101), abs=45)
