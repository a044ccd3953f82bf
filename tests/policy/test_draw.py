"""Tokens drawn from logits by inverting the cumulative distribution."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.policy.draw import BLOCK, block_sums, draw_tokens, invert

UNIFORMS = st.one_of(st.sampled_from([0.0, 1 - 2**-24]), st.integers(0, 2**24 - 1).map(lambda i: i / 2**24))


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(2**-90, 1.0, width=32)), min_size=1, max_size=40).filter(any),
    st.integers(1, 40),
    UNIFORMS,
)
def test_inversion_finds_the_first_token_past_the_draw_and_never_one_of_weight_zero(
    weights: list[float], spread: int, uniform: float
) -> None:
    weight_V = torch.zeros(len(weights) * spread)  # across several blocks, mostly of weight 0
    weight_V[::spread] = torch.tensor(weights)
    token = int(invert(weight_V[None], block_sums(weight_V[None]), torch.tensor([[uniform]])))
    cumulative = weight_V.double().cumsum(dim=0)
    assert weight_V[token] > 0
    if uniform < 1 - 2**-20:
        threshold = uniform * float(cumulative[-1])
        assert float(cumulative[token]) >= threshold * (1 - 1e-9)
        assert token == 0 or float(cumulative[token - 1]) <= threshold * (1 + 1e-9)


def test_the_extremes_of_the_uniform_draw_take_the_first_and_last_possible_token() -> None:
    weight_RV = torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.0, 0.1, 0.1, 0.0]])
    extremes_RM = torch.tensor([[0.0, 1 - 2**-24]] * 2)
    assert invert(weight_RV, block_sums(weight_RV), extremes_RM).tolist() == [[1, 2], [1, 2]]


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_tokens_follow_the_softmax_and_know_their_logprobs(vocabulary: int, temperature: float) -> None:
    logits_RV = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    expected_RV = torch.log_softmax(logits_RV.double() / temperature, dim=-1)
    grid_M = (torch.arange(20_000) + 0.5) / 20_000
    token_RM, logprob_RM = draw_tokens(logits_RV.clone(), grid_M.expand(3, -1), temperature)
    torch.testing.assert_close(logprob_RM.double(), expected_RV.gather(1, token_RM), rtol=0, atol=2e-6)
    for row in range(3):
        counts = Counter(token_RM[row].tolist())
        for token in range(vocabulary):  # an even grid hits each token's interval up to one point
            assert abs(counts[token] - 20_000 * float(expected_RV[row, token].exp())) <= 1.01


def test_temperature_zero_takes_the_likeliest_token() -> None:
    logits_RV = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])
    expected_RV = torch.log_softmax(logits_RV, dim=-1)
    token_RM, logprob_RM = draw_tokens(logits_RV.clone(), torch.tensor([[0.9, 0.0], [0.9, 0.0]]), temperature=0.0)
    assert token_RM.tolist() == [[1, 1], [0, 0]]
    torch.testing.assert_close(logprob_RM, expected_RV.gather(1, token_RM))


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_logits_that_are_not_numbers_give_valid_tokens_without_a_logprob(top_p: float) -> None:
    for vocabulary in (5, 2 * BLOCK + 1):
        logits_RV = torch.full((2, vocabulary), float("nan"))
        token_RM, logprob_RM = draw_tokens(logits_RV, torch.tensor([[0.0], [0.9]]), top_p=top_p)
        assert all(0 <= token < vocabulary for [token] in token_RM.tolist())
        assert logprob_RM.isnan().all()
