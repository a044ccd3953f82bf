"""pass@k against counting, intervals, and the figures of a task by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.evaluation.metrics import Estimate, PromptResult, bootstrap, pass_at_k, summarise

counts = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer(samples: int) -> None:
    for correct, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@given(counts)
def test_pass_at_k_is_bounded_and_grows_with_k_and_with_right_answers(numbers: tuple[int, int, int]) -> None:
    samples, correct, k = numbers
    value = pass_at_k(samples, correct, k)
    assert 0.0 <= value <= 1.0
    assert pass_at_k(samples, correct, 1) == pytest.approx(correct / samples)
    if k < samples:
        assert pass_at_k(samples, correct, k + 1) >= value
    if correct < samples:
        assert pass_at_k(samples, correct + 1, k) >= value
    assert (value == 1.0) == (correct > samples - k) or correct * k > 100  # 1 by rounding otherwise
    assert (value == 0.0) == (correct == 0)


def test_large_numbers_of_samples_do_not_overflow() -> None:
    assert pass_at_k(5000, 1, 2500) == pytest.approx(0.5)
    assert pass_at_k(1000, 500, 1) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_what_cannot_be_estimated_is_refused(samples: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} cannot be estimated"):
        pass_at_k(samples, correct, k)


def test_the_interval_covers_the_truth_about_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        estimate = bootstrap(rng.random(60).tolist())
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, size=400)
    estimate = bootstrap(values.tolist())
    error = values.std() / math.sqrt(400)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert estimate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 5))
def test_intervals_are_deterministic_and_within_the_values(values: list[float], seed: int) -> None:
    estimate = bootstrap(values, seed)
    assert estimate == bootstrap(values, seed)
    assert min(values) - 1e-12 <= estimate.low <= estimate.high <= max(values) + 1e-12
    assert estimate.low - 1e-12 <= estimate.mean or estimate.mean <= estimate.high + 1e-12


def test_equal_values_have_no_spread_and_other_seeds_other_intervals() -> None:
    assert bootstrap([0.25] * 7) == Estimate(0.25, 0.25, 0.25)
    values = [i / 7 for i in range(8)]
    assert bootstrap(values, 0) != bootstrap(values, 1)
    with pytest.raises(ValueError, match="no prompts"):
        bootstrap([])


RESULTS = [
    PromptResult([1.0, 0.5, 0.0, 1.0], ["7", "8", "9", "7"]),
    PromptResult([0.0, 0.99, 0.0, 0.0], ["1", "2", "2", "2"]),
    PromptResult([1.0, 0.0], ["3", "3"]),  # two could not be judged
    PromptResult([], []),  # none could
]


def test_figures_by_hand() -> None:
    figures = summarise(RESULTS, [1, 2, 4])
    means = {name: estimate.mean for name, estimate in figures.items()}
    assert means == pytest.approx(
        {
            "pass@1": (0.5 + 0.0 + 0.5) / 3,  # only full reward counts; an unjudged completion is not a failure
            "pass@2": (5 / 6 + 0.0 + 1.0) / 3,
            "pass@4": (1.0 + 0.0) / 2,  # the third prompt has two judged completions only
            "mean@4": (2.5 / 4 + 0.99 / 4 + 0.5) / 3,
            "distinct": (3 + 2 + 1) / 3,
            "distinct_correct": (1 + 0 + 1) / 3,
        }
    )
    assert all(estimate.low <= estimate.mean <= estimate.high for estimate in figures.values())


def test_the_interval_of_one_prompt_has_no_width() -> None:
    assert summarise(RESULTS[:1], [2])["pass@2"] == Estimate(5 / 6, 5 / 6, 5 / 6)


@pytest.mark.parametrize("results", [[], RESULTS[3:], RESULTS[2:]])
def test_too_few_judged_completions_are_refused(results: list[PromptResult]) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        summarise(results, [1, 4])
