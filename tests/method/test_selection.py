"""Properties of selectors, cooldown, exploration and gates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pacedrl.method import AccuracyEstimator, Beliefs, most_learnable, uninformative
from pacedrl.method.estimator import ALL, Floats, Rows
from pacedrl.method.selection import NEVER, SelectionMethod, last_solved, lowest, rested, select, selection_score

estimates = arrays(np.float64, st.integers(1, 60), elements=st.floats(-0.5, 1.5))
REWARDS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=8)


def points(mean_N: np.ndarray) -> Beliefs:
    return Beliefs(mean_N, np.full(len(mean_N), np.inf))


class Believing(AccuracyEstimator):
    """An estimator with the given beliefs."""

    def __init__(self, given: Beliefs) -> None:
        super().__init__("none", len(given.mean_N), None, None, 0.5)
        self.given = given

    def mean(self, rows: Rows = ALL) -> Floats:
        return self.given.mean_N[rows]

    def beliefs(self, rows: Rows = ALL) -> Beliefs:
        return Beliefs(self.given.mean_N[rows], self.given.strength_N[rows])


def score(
    method: SelectionMethod,
    beliefs: Beliefs,
    seed: int = 0,
    target: float = 0.5,
    group_size: int = 8,
    rows: Rows = ALL,
) -> np.ndarray:
    epoch_N, rng = np.arange(len(beliefs.mean_N)), np.random.default_rng(seed)
    return selection_score(method, Believing(beliefs), rows, epoch_N, target, group_size, rng)


@given(estimates, st.floats(0, 1), st.data())
def test_nearest_target_is_exact(estimate: np.ndarray, target: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(estimate)))
    chosen = lowest(score("nearest", points(estimate), target=target), count, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == count
    distance = np.abs(estimate - target)
    assert sorted(distance[chosen]) == sorted(distance)[:count]


def test_ties_are_broken_at_random_and_evenly() -> None:
    hits = np.zeros(10)
    for seed in range(2000):
        hits[lowest(np.full(10, 0.5), 3, np.random.default_rng(seed))] += 1
    assert hits == pytest.approx(np.full(10, 600), abs=90)  # about 4 standard deviations


def test_the_order_of_the_chosen_says_nothing_of_their_index() -> None:
    first = [lowest(np.full(10, 0.5), 10, np.random.default_rng(seed))[0] for seed in range(300)]
    assert len(set(first)) == 10


def test_refuses_too_few_prompts() -> None:
    with pytest.raises(ValueError, match="cannot select"):
        lowest(np.array([0.5]), 2, np.random.default_rng(0))


@pytest.mark.parametrize("method", ["nearest", "thompson", "learnability", "mapp"])
def test_refuses_an_estimate_that_is_no_number(method: SelectionMethod) -> None:
    with pytest.raises(ValueError, match="NaN"):
        score(method, points(np.array([0.5, np.nan])))


@pytest.mark.parametrize("method", ["uniform", "greso", "noise"])
def test_what_reads_no_estimate_needs_none(method: SelectionMethod) -> None:
    assert len(score(method, points(np.full(3, np.nan)))) == 3


def test_noise_knows_nothing_of_the_estimates() -> None:
    first, second = points(np.array([0.5, 0.0, 1.0])), points(np.array([0.0, 0.5, 0.1]))
    assert score("noise", first, seed=4).tolist() == score("noise", second, seed=4).tolist()
    assert score("noise", first, seed=4).tolist() != score("noise", first, seed=5).tolist()


def test_thompson_draws_from_the_posterior() -> None:
    """Mean and variance of Beta(α, β) are α/(α+β) and αβ/((α+β)²(α+β+1))."""
    alpha, beta = 3.0, 9.0
    beliefs = Beliefs(np.full(20_000, alpha / (alpha + beta)), np.full(20_000, alpha + beta))
    draws = score("thompson", beliefs, target=0.0)  # the distance to 0 is the draw itself
    assert draws.mean() == pytest.approx(0.25, abs=0.005)
    assert draws.var() == pytest.approx(alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1)), rel=0.05)


@given(st.floats(0.1, 20), st.floats(0.1, 20))
def test_learnability_is_the_posterior_mean_of_p_times_one_less_p(alpha: float, beta: float) -> None:
    total = alpha + beta
    beliefs = Beliefs(np.array([alpha / total]), np.array([total]))
    assert -score("learnability", beliefs)[0] == pytest.approx(alpha * beta / (total * (total + 1)), rel=1e-9)


def test_a_larger_group_is_likely_mixed_further_from_one_half() -> None:
    """At G = 2 it is 2·p(1 − p); at G = 8 even a prompt of accuracy 0.2 is likely mixed."""
    means = np.array([-0.2, 0.0, 0.2, 0.5, 0.8, 1.0])
    assert -score("mapp", points(means), group_size=2) == pytest.approx([0.0, 0.0, 0.32, 0.5, 0.32, 0.0])
    assert -score("mapp", points(means)) == pytest.approx([0.0, 0.0, 0.8322, 0.9922, 0.8322, 0.0], abs=1e-4)


def test_learnability_of_a_point_estimate_peaks_at_one_half() -> None:
    scores = -score("learnability", points(np.array([-0.2, 0.0, 0.3, 0.5, 0.7, 1.0, 1.3])))
    assert scores == pytest.approx([0.0, 0.0, 0.21, 0.25, 0.21, 0.0, 0.0])


@pytest.mark.parametrize("method", ["nearest", "uniform", "learnability", "mapp", "greso"])
def test_a_score_of_some_rows_is_that_of_all(method: SelectionMethod) -> None:
    beliefs, rows = Beliefs(np.linspace(0, 1, 9), np.full(9, 4.0)), np.array([6, 1, 3])
    assert np.array_equal(score(method, beliefs, rows=rows), score(method, beliefs)[rows])


def test_solved_prompts_return_longest_ago_first_with_ties_at_random() -> None:
    solved_N, last_used_N = np.array([True, True, False, True, True]), np.array([7, 3, 0, 5, 3])
    firsts = set()
    for seed in range(50):
        chosen = last_solved(solved_N, last_used_N, 3, np.random.default_rng(seed)).tolist()
        assert set(chosen[:2]) == {1, 4}
        assert chosen[2] == 3
        firsts.add(chosen[0])
    assert firsts == {1, 4}
    assert len(last_solved(solved_N, last_used_N, 9, np.random.default_rng(0))) == 4


@given(REWARDS)
def test_a_group_is_uninformative_just_when_its_rewards_do_not_differ(rewards: list[float]) -> None:
    reason = uninformative(rewards)
    assert (reason is None) == (len(set(rewards)) > 1)
    if reason is not None and len(rewards) > 1:
        assert reason == {0.0: "all_wrong", 1.0: "all_right"}.get(rewards[0], "all_equal")
    elif reason is not None:
        assert reason == "unjudged"


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8), max_size=20), st.integers(0, 20))
def test_lilo_keeps_the_most_learnable_groups(rewards: list[list[float]], count: int) -> None:
    kept = most_learnable(rewards, count)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, len(rewards))
    means = [np.mean(row) for row in rewards]
    worth = [p * (1 - p) for p in means]
    assert sorted(worth[i] for i in kept) == pytest.approx(sorted(worth)[len(worth) - len(kept) :])


def test_a_group_of_equal_partial_rewards_is_not_learnable() -> None:
    assert most_learnable([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0], [0.25, 0.5, 0.5]], 1) == [1]


@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 20)), st.integers(0, 30), st.data())
def test_cooldown_rests_prompts_but_never_starves_the_batch(
    last_used: np.ndarray, cooldown: int, data: st.DataObject
) -> None:
    step = 21
    needed = data.draw(st.integers(0, len(last_used)))
    candidates = rested(last_used, step, cooldown, needed, np.random.default_rng(0))
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
    used, rng = np.array([4, NEVER]), np.random.default_rng(0)
    assert rested(used, step=5, cooldown_steps=0, at_least=1, rng=rng).tolist() == [0, 1]
    assert rested(used, step=5, cooldown_steps=1, at_least=1, rng=rng).tolist() == [1]


def test_ties_among_the_longest_rested_prompts_are_broken_at_random() -> None:
    hits = np.zeros(12)
    for seed in range(600):
        hits[rested(np.full(12, 4), 5, 9, at_least=4, rng=np.random.default_rng(seed))] += 1
    assert hits == pytest.approx(np.full(12, 200), abs=50)


def pick(explore: float, count: int = 10, seed: int = 0, cooldown: int = 0) -> np.ndarray:
    return select(
        np.abs(np.linspace(0, 1, 101) - 0.5),
        np.full(101, NEVER),
        step=0,
        count=count,
        explored=round(explore * count),
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
