"""Estimates of very many prompts: a rotating share is recomputed, and embeddings are projected."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pacedrl.method import DifficultyScheduler, LogPartition, PartitionLearner, Rollouts, project
from pacedrl.method.partition import CHUNK, PartitionScores, feature_moments


def made(prompts: int, share: float) -> PartitionScores:
    torch.manual_seed(3)
    embeddings_NH = torch.randn(prompts, 6)
    return PartitionScores(PartitionLearner(LogPartition(embeddings_NH, 0.05, dropout=0.0)), embeddings_NH, share)


def fit(scores: PartitionScores, rows: list[int]) -> None:
    target = torch.linspace(0, 1, len(rows))
    scores.learner.fit(scores.embeddings_NH[rows], target, torch.zeros(len(rows)), seed=0)
    scores.fitted(np.array(rows))


def exact(scores: PartitionScores) -> Tensor:
    return scores.learner.accuracy(scores.embeddings_NH)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0.01, 0.99), st.integers(1, 8))
def test_seen_prompts_and_the_next_share_are_up_to_date_after_each_fit(n: int, share: float, fits: int) -> None:
    scores = made(n, share)
    scores.all()
    a_turn = math.ceil(share * n)
    stale = np.zeros(n, dtype=int)  # fits since a prompt was last computed
    turned = np.zeros(n, dtype=int)  # since it last had its turn, or since the beginning
    start = 0
    for step in range(fits):
        seen = [step % n]
        fit(scores, seen)
        stale += 1
        turn = range(start, min(start + a_turn, n))
        start = turn.stop % n
        stale[[*turn, *seen]] = 0
        turned = np.where(np.isin(np.arange(n), turn), 0, turned + 1)
        np.testing.assert_array_equal(np.minimum(scores.fits_ago(), step + 1), turned)
        now = exact(scores).numpy()
        fresh = stale == 0
        np.testing.assert_allclose(scores.all()[fresh], now[fresh], rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores.of(np.arange(n)), now, rtol=0, atol=1e-6)  # those asked for by name: always
    assert stale.max() <= math.ceil(n / a_turn)


def test_with_the_full_share_all_are_exact_and_nothing_is_saved() -> None:
    scores = made(20, 1.0)
    fit(scores, [1, 2, 3])
    assert scores.fits_ago().tolist() == [0] * 20
    np.testing.assert_allclose(scores.all(), exact(scores).numpy(), rtol=0, atol=0)
    assert scores.state_dict() == {}


def test_with_a_share_the_others_keep_what_they_had() -> None:
    scores = made(20, 0.25)
    before = scores.all().copy()
    fit(scores, [19])
    changed = np.flatnonzero(scores.all() != before).tolist()
    assert changed == [0, 1, 2, 3, 4, 19]
    fit(scores, [19])
    assert np.flatnonzero(scores.all() != before).tolist() == [*range(10), 19]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_shares_outside_zero_to_one_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"rescore_share must lie in \(0, 1\]"):
        made(4, share)


def test_stale_estimates_are_resumed_bit_for_bit() -> None:
    keys = [f"prompt-{i}" for i in range(40)]
    embeddings_NH = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))

    def scheduler() -> DifficultyScheduler:
        torch.manual_seed(0)
        return DifficultyScheduler(keys, embeddings_NH, rescore_share=0.1)

    def step(scheduler: DifficultyScheduler) -> list[str]:
        chosen = scheduler.select(4)
        rng = np.random.default_rng(scheduler.step)
        scheduler.observe(Rollouts(chosen * 8, rng.integers(0, 2, 32).astype(float)))
        return chosen

    whole, first = scheduler(), scheduler()
    for _ in range(3):
        assert step(whole) == step(first)
    resumed = scheduler()
    resumed.load_state_dict(first.state_dict())
    assert not np.allclose(resumed.accuracy_estimates(), exact(resumed.scores).numpy(), atol=1e-4)  # type: ignore[arg-type]
    for _ in range(3):
        assert step(whole) == step(resumed)
    assert np.array_equal(whole.accuracy_estimates(), resumed.accuracy_estimates())


def test_moments_are_those_of_all_rows_in_chunks() -> None:
    rows = 2 * CHUNK + 77
    embeddings_NH = (1000 + torch.randn(rows, 3, dtype=torch.float64) * torch.tensor([1e-2, 1.0, 0.0])).float()
    mean_H, scale_H = feature_moments(embeddings_NH)
    torch.testing.assert_close(mean_H, embeddings_NH.double().mean(dim=0).float())
    expected = embeddings_NH.double().std(dim=0, unbiased=False).clamp_min(1e-6).float()
    torch.testing.assert_close(scale_H, expected, rtol=1e-4, atol=1e-7)


def test_a_projection_keeps_what_varies_most() -> None:
    generator = torch.Generator().manual_seed(0)
    factors_N2 = torch.randn(500, 2, generator=generator)
    mixing_2H = torch.randn(2, 12, generator=generator)
    embeddings_NH = (50 + factors_N2 @ mixing_2H + 0.01 * torch.randn(500, 12, generator=generator)).half()
    projected_NK = project(embeddings_NH, 2)
    assert projected_NK.shape == (500, 2)
    assert projected_NK.dtype == torch.float16
    # The two components tell the two factors: each is a linear function of them.
    inputs = torch.cat([projected_NK.float(), torch.ones(500, 1)], dim=1)
    residual = factors_N2 - inputs @ torch.linalg.lstsq(inputs, factors_N2).solution
    assert float(residual.std()) < 0.02
    first, second = projected_NK.float().std(dim=0)
    assert first > second


@pytest.mark.parametrize("size", [0, 5, 7])
def test_projections_to_more_components_than_exist_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot project 4 prompts of 6 features to {size}"):
        project(torch.randn(4, 6), size)
