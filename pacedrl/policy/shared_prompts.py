"""Decoding completions of one prompt from a single copy of the prompt's keys and values."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from pacedrl.errors import InputError
from pacedrl.policy.attention import attention
from pacedrl.policy.cache import ColumnCache, States, cached_dtype, column_step, no_columns, round_up, states_of
from pacedrl.policy.loading import find_decoder
from pacedrl.policy.logprobs import product
from pacedrl.policy.transfer import to_device


@dataclass(frozen=True)
class SharedPromptPattern:
    """Lets one new token per row attend to the row's prompt and to the row's own columns.

    This equals attention over the two concatenated: one softmax over the scores of both. All rows of a prompt share one
    multiplication with its keys and one with its values, so these are read once for all of them. Scores, weights and
    sums are float32, as in fused attention kernels, while what is multiplied has the precision of keys and values.
    """

    prompts: Sequence[States]
    """Keys and values of each layer, [P, key-value heads, L, D]."""
    prompt_bias: Tensor
    """0 where there is a token, else -inf: [P, 1, 1, L]."""
    own_bias: Tensor
    """The same for the rows' own columns: [B, 1, 1, columns]."""
    rows_a_prompt: int
    """G, the largest number of rows of any prompt."""
    place_B: Tensor | None
    """Which of P · G places each row takes; None if the rows fill all of them in order."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, layer: int) -> Tensor:
        batch, heads, _, size = query.shape
        prompt_key, prompt_value = self.prompts[layer]
        scaled = query * (size**-0.5 if scale is None else scale)
        # The heads that share a key-value head become queries of that head.
        query_BHRD = scaled.reshape(batch, key.shape[1], heads // key.shape[1], size)
        prompt_PHQL = product(self._by_prompt(query_BHRD), prompt_key.transpose(2, 3)) + self.prompt_bias
        own_BHRS = product(query_BHRD, key.transpose(2, 3)) + self.own_bias
        weight = torch.cat([self._by_row(prompt_PHQL, query_BHRD.shape[2]), own_BHRS], dim=-1).softmax(dim=-1)
        rounds = value.dtype != torch.float32
        if rounds:  # weights relative to the largest one, which is then exact, as in fused kernels
            largest = weight.amax(dim=-1, keepdim=True)
            weight = weight / largest
        width = prompt_key.shape[2]
        seen_PHQD = product(self._by_prompt(weight[..., :width]), prompt_value)
        output_BHRD = self._by_row(seen_PHQD, query_BHRD.shape[2]) + product(weight[..., width:], value)
        if rounds:
            output_BHRD = output_BHRD * largest
        # A stride of H for the one token, too, lets the next layer multiply all rows as one matrix, not one by one.
        return output_BHRD.reshape(batch, 1, heads, -1).to(query.dtype).transpose(1, 2)

    def with_columns(self, token_BL: Tensor) -> "SharedPromptPattern":
        """Return the pattern of the same rows when other columns of theirs hold tokens."""
        return replace(self, own_bias=_bias(token_BL))

    def _by_prompt(self, rows: Tensor) -> Tensor:
        """Group rows by prompt: [B, heads, R, X] → [P, heads, G · R, X], with zeros for missing rows."""
        prompts, size = len(self.prompt_bias), self.rows_a_prompt
        if self.place_B is not None:
            rows = rows.new_zeros(prompts * size, *rows.shape[1:]).index_copy_(0, self.place_B, rows)
        return rows.reshape(prompts, size, *rows.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, scores: Tensor, queries: int) -> Tensor:
        """Undo `_by_prompt`: [P, heads, G · R, X] → [B, heads, R, X] with R = ``queries``."""
        prompts, heads, _, width = scores.shape
        rows = scores.reshape(prompts, heads, self.rows_a_prompt, queries, width).transpose(1, 2).flatten(0, 1)
        return rows if self.place_B is None else rows.index_select(0, self.place_B)


class PromptCache:
    """Keys and values of prompts of at most ``width`` tokens, each prompt once.

    Prompt i's tokens are in the last ``lengths[i]`` columns. There is room for ``capacity`` prompts, which grows when
    more are inserted.
    """

    def __init__(self, capacity: int, width: int, device: torch.device) -> None:
        self.capacity = capacity
        self.step = column_step(device)
        self.width = round_up(width, self.step)
        self.device = device
        self.lengths: list[int] = []
        self.layers: list[States] = []

    def insert(self, states: Sequence[States], lengths: Sequence[int]) -> None:
        """Add left-padded prompts."""
        count = len(self.lengths)
        self.lengths += lengths
        if not self.layers:
            self.layers = [(self._buffer(keys), self._buffer(values)) for keys, values in states]
        if len(self.lengths) > self.capacity:
            self._grow(count)
        for own, new in zip(self.layers, states, strict=True):
            for buffer, tensor in zip(own, new, strict=True):
                before = self.width - tensor.shape[2]
                buffer[count : len(self.lengths), :, :before] = 0.0  # also masked columns, because 0 · inf is NaN
                buffer[count : len(self.lengths), :, before:] = tensor

    def remove(self, place: int) -> None:
        """Drop the prompt at ``place``; the last prompt moves there."""
        last = len(self.lengths) - 1
        if place != last:
            for buffers in self.layers:
                for buffer in buffers:
                    buffer[place] = buffer[last]
        self.lengths[place] = self.lengths[last]
        self.lengths.pop()

    def pattern(self, prompt_B: Sequence[int], token_BL: Tensor) -> SharedPromptPattern:
        """Return the pattern for rows, given the place of each row's prompt and which of its columns hold tokens."""
        count, rows = len(self.lengths), Counter[int]()
        ranks = []
        for prompt in prompt_B:
            ranks.append(rows[prompt])
            rows[prompt] += 1
        size = max(rows.values())
        places = [prompt * size + rank for prompt, rank in zip(prompt_B, ranks, strict=True)]
        whole = places == list(range(count * size))
        first = self.width - round_up(max(self.lengths), self.step)
        column_L = torch.arange(first, self.width, device=self.device)
        token_PL = column_L >= self.width - to_device(self.lengths, self.device)[:, None]
        return SharedPromptPattern(
            [(keys[:count, :, first:], values[:count, :, first:]) for keys, values in self.layers],
            _bias(token_PL),
            _bias(token_BL),
            size,
            None if whole else to_device(places, self.device),
        )

    def _grow(self, used: int) -> None:
        self.capacity = max(len(self.lengths), 2 * self.capacity)
        for i, (keys, values) in enumerate(self.layers):
            self.layers[i] = self._buffer(keys), self._buffer(values)
            for buffer, old in zip(self.layers[i], (keys, values), strict=True):
                buffer[:used] = old[:used]

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.capacity, like.shape[1], self.width, like.shape[3], dtype=cached_dtype(like))


def _bias(token: Tensor) -> Tensor:
    """Return what is added to attention scores: 0 where there is a token, else -inf, [rows, 1, 1, columns]."""
    return torch.zeros(token.shape, device=token.device).masked_fill_(~token, -torch.inf)[:, None, None]


@torch.no_grad()
def can_share_prompts(
    causal_lm: Any, cache_argument: str, autocast: AbstractContextManager[Any], tolerance: float
) -> bool:
    """Whether a model that takes patterns can decode with `SharedPromptPattern`, tried on a few tokens in ``autocast``.

    It cannot if it caches something smaller than its keys and values, as DeepSeek's compressed attention does.
    ``tolerance`` is relative to the largest logit.
    """
    device = causal_lm.device
    prompt, tokens = [3, 1, 4], [[2], [6]]
    prefilled, own = DynamicCache(), ColumnCache(2, 1, device)
    with autocast:
        causal_lm(input_ids=torch.tensor([prompt], device=device), **{cache_argument: prefilled}, use_cache=True)
        try:
            states = states_of(prefilled, len(prompt))
            prompts = PromptCache(1, len(prompt), device)
            prompts.insert(states, [len(prompt)])
            own.insert(no_columns(states), [0], len(tokens))
            pattern = prompts.pattern([0, 0], own.token_mask())
            with attention(find_decoder(causal_lm).config, pattern):
                logits_BV = causal_lm(
                    input_ids=torch.tensor(tokens, device=device),
                    position_ids=torch.full((len(tokens), 1), len(prompt), device=device),
                    **{cache_argument: own.cache},
                    use_cache=True,
                ).logits[:, -1]
        except (InputError, NotImplementedError, RuntimeError, TypeError):  # shapes do not fit, or torch is before 2.8
            return False
        whole = torch.tensor([prompt + token for token in tokens], device=device)
        expected_BV = causal_lm(input_ids=whole, use_cache=False).logits[:, -1]
    return torch.allclose(logits_BV, expected_BV, rtol=tolerance, atol=tolerance * float(expected_BV.abs().max()))
