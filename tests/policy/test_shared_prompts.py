"""Attention of completions to prompts that are kept once, while prompts are added, removed and outgrow the cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, MistralConfig
from transformers.cache_utils import Cache

from pacedrl.errors import InputError
from pacedrl.policy.cache import states_of
from pacedrl.policy.shared_prompts import PromptCache

CPU = torch.device("cpu")
WIDTH, KEY_HEADS, REPEATS, SIZE, LAYERS = 6, 2, 3, 4, 2
lengths = st.lists(st.integers(1, WIDTH), min_size=1, max_size=3)


def padded(length: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return keys and values of a left-padded prompt, with arbitrary values in the padding, as a model may leave."""
    keys, values = (torch.randn(1, KEY_HEADS, width, SIZE, generator=generator) for _ in range(2))
    return keys, values


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(lengths | st.integers(0, 9), min_size=1, max_size=8), seed=st.integers(0, 999))
def test_each_row_attends_to_its_prompt_and_its_own_tokens(steps: list[list[int] | int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cache, expected = PromptCache(2, WIDTH, CPU), []
    for step in steps:  # lengths of new prompts, or the place of one to remove
        if isinstance(step, list):
            wide = max(step)
            new = [[padded(length, wide, generator) for _ in range(LAYERS)] for length in step]
            layers = [
                tuple(torch.cat([prompt[layer][part] for prompt in new]) for part in (0, 1)) for layer in range(LAYERS)
            ]
            cache.insert([(keys, values) for keys, values in layers], step)
            for length, prompt in zip(step, new, strict=True):
                expected.append([tuple(part[0, :, wide - length :] for part in layer) for layer in prompt])
        elif step < len(expected) - 1:
            for buffers in cache.layers:
                for buffer in buffers:
                    buffer[step].fill_(torch.inf)  # as of a diverged policy; no other prompt may see it
            cache.remove(step)
            expected[step] = expected[-1]
            expected.pop()
    if not expected:
        return
    rows = torch.randint(0, len(expected), (5,), generator=generator).tolist()
    token_BL = torch.rand(5, 3, generator=generator) < 0.7
    token_BL[:, -1] = True
    query = torch.randn(5, KEY_HEADS * REPEATS, 1, SIZE, generator=generator)
    own = [torch.randn(5, KEY_HEADS, 3, SIZE, generator=generator) for _ in range(2)]
    pattern = cache.pattern(rows, token_BL)
    for layer in range(LAYERS):
        output = pattern.attend(query, own[0], own[1], 0.3, layer)
        for row, prompt in enumerate(rows):
            keys, values = (
                torch.cat([expected[prompt][layer][part], own[part][row][:, token_BL[row]]], dim=1) for part in (0, 1)
            )
            for head in range(KEY_HEADS * REPEATS):
                weight = torch.softmax(0.3 * keys[head // REPEATS] @ query[row, head, 0], dim=0)
                torch.testing.assert_close(output[row, head, 0], weight @ values[head // REPEATS], rtol=0, atol=1e-5)


def test_a_cache_that_does_not_keep_every_token_is_refused() -> None:
    config = MistralConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, sliding_window=4
    )
    cache: Cache = DynamicCache(config=config)
    states = torch.zeros(1, 1, 7, 8)
    cache.update(states, states, 0)
    assert cache.layers[0].keys.shape[2] == 3
    with pytest.raises(InputError, match=r"its cache \(.*\) cannot be shared by completions"):
        states_of(cache, 7)
