"""Custom attention patterns, and the one that trains completions packed with their shared prompts.

A pattern is passed to a model through transformers' interface for attention implementations while the context
`attention` lasts; the model's layers are not changed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from pacedrl.policy.loading import find_decoder

NAME = "pacedrl"
CHANGES_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Options of a layer's attention that the patterns here do not implement."""


def exclude_cudnn() -> None:
    """Keep cuDNN out of `scaled_dot_product_attention` in this process, whoever calls it.

    torch from 2.11 on prefers cuDNN on H100 and H200. Given a mask, it returns NaN gradients of the query where the
    number of keys is 64 modulo 128 and the scores of a query are very negative (pytorch/pytorch#196678). Prefilling,
    embedding, and updates that pad their rows all pass masks.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


class Pattern(Protocol):
    """Decides which tokens attend to which."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, layer: int) -> Tensor:
        """Attend in one layer: [B, heads, queries, D] and [B, key-value heads, keys, D] → [B, heads, queries, D]."""


current_pattern: ContextVar[Pattern | None] = ContextVar("pattern", default=None)


@contextmanager
def attention(config: Any, pattern: Pattern | None) -> Iterator[None]:
    """Let the model of ``config`` attend by ``pattern``; None leaves its attention unchanged."""
    if pattern is None:
        yield
        return
    usual, token = config._attn_implementation, current_pattern.set(pattern)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = usual
        current_pattern.reset(token)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    for name in CHANGES_ATTENTION:
        if options.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} asks for {name}")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise NotImplementedError(f"{type(module).__name__} does not say which layer it is")
    pattern = current_pattern.get()
    assert pattern is not None
    return pattern.attend(query, key, value, scaling, layer).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # each pattern applies its own mask


def _dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Compute grouped-query attention, causal if there is no mask."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # a GPU's fused kernels take a mask or grouped heads, not both
        repeats = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


@dataclass(frozen=True)
class _Rows:
    """Cuts sequences out of one packed row of N tokens, pads them to one length and puts the results back."""

    query_RT: Tensor
    key_RS: Tensor
    mask_RTS: Tensor | None
    kept: Tensor
    """Indices in [R·T] that hold a token, in the order of the packed row."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        mask = None if self.mask_RTS is None else self.mask_RTS[:, None]
        output_RHTD = _dot_product(
            _take(query, self.query_RT), _take(key, self.key_RS), _take(value, self.key_RS), mask, scale
        )
        return output_RHTD.transpose(0, 1).flatten(1, 2).index_select(1, self.kept)


def _take(packed: Tensor, index_RT: Tensor) -> Tensor:
    """Take the tokens of each row: [1, heads, N, D] → [R, heads, T, D]."""
    # The backward pass of index_select adds whole rows, where that of indexing would sort every element.
    taken = packed[0].index_select(1, index_RT.flatten())
    return taken.view(len(taken), *index_RT.shape, -1).transpose(0, 1)


@dataclass(frozen=True)
class PackedRow(Pattern):
    """One row of N tokens that holds distinct prompts, each once, and completions without their last tokens.

    Every completion attends to its prompt and to itself, with the positions it would have in its own sequence. Nothing
    is predicted from its last token. Subclasses order the tokens and attend.
    """

    token_N: Tensor
    position_N: Tensor
    before_K: Tensor
    """Index in the packed row from which each of the K completion tokens is predicted, completions concatenated."""


@dataclass(frozen=True)
class SharedPrefix(PackedRow):
    """The distinct prompts, then all completions; both attend in rows that are padded to the longest one."""

    parts: list[_Rows]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, layer: int) -> Tensor:
        return torch.cat([rows.attend(query, key, value, scale) for rows in self.parts], dim=1)[None]


def shared_prefix(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], device: torch.device
) -> SharedPrefix:
    """Pack completions with their prompts; equal prompts are packed once. Every completion has at least one token."""
    numbers: dict[tuple[int, ...], int] = {}
    prompt_B = np.array([numbers.setdefault(tuple(ids), len(numbers)) for ids in prompt_ids])
    inputs = [ids[:-1] for ids in completion_ids]
    prompt_length_P = np.array([len(ids) for ids in numbers])
    input_length_B = np.array([len(ids) for ids in inputs])
    prompt_start_P = prompt_length_P.cumsum() - prompt_length_P
    input_start_B = prompt_length_P.sum() + input_length_B.cumsum() - input_length_B

    def tensor(array: Any) -> Tensor:
        return torch.as_tensor(array, device=device)

    def cut(start_R: Any, length_R: Any) -> tuple[Any, Any]:
        """Return the indices of runs of tokens, padded with index 0, and which are not padding: both [R, longest]."""
        offset_T = np.arange(length_R.max())
        real_RT = offset_T < length_R[:, None]
        return np.where(real_RT, start_R[:, None] + offset_T, 0), real_RT

    prompt_PL, prompt_real_PL = cut(prompt_start_P, prompt_length_P)
    parts = [_Rows(tensor(prompt_PL), tensor(prompt_PL), None, tensor(prompt_real_PL.ravel().nonzero()[0]))]
    own_length_B, own_start_B = prompt_length_P[prompt_B], prompt_start_P[prompt_B]
    position_N = np.concatenate(
        [np.arange(n) for n in prompt_length_P]
        + [np.arange(n, n + m) for n, m in zip(own_length_B, input_length_B, strict=True)]
    )
    if input_length_B.any():
        input_BT, input_real_BT = cut(input_start_B, input_length_B)
        offset_S = np.arange((own_length_B + input_length_B).max())
        in_prompt_BS = offset_S < own_length_B[:, None]
        in_input_BS = ~in_prompt_BS & (offset_S < (own_length_B + input_length_B)[:, None])
        key_BS = np.where(in_prompt_BS, own_start_B[:, None] + offset_S, 0)
        key_BS = np.where(in_input_BS, (input_start_B - own_length_B)[:, None] + offset_S, key_BS)
        last_seen_BT = own_length_B[:, None] + np.arange(input_BT.shape[1])
        mask_BTS = tensor(offset_S) <= tensor(last_seen_BT)[:, :, None]  # made on the device, because it is large
        kept = tensor(input_real_BT.ravel().nonzero()[0])
        parts.append(_Rows(tensor(input_BT), tensor(key_BS), mask_BTS, kept))
    before = [
        np.r_[own_start + own_length - 1, start : start + length]
        for own_start, own_length, start, length in zip(
            own_start_B, own_length_B, input_start_B, input_length_B, strict=True
        )
    ]
    tokens = [token for ids in [*numbers, *inputs] for token in ids]
    return SharedPrefix(tensor(tokens), tensor(position_N), tensor(np.concatenate(before)), parts)


PROBE = ([[3, 1, 4], [3, 1, 4], [5, 9]], [[2, 6, 5], [3, 5], [8, 9]])
"""Prompts and completions whose ids are in every model's vocabulary."""


@torch.no_grad()
def takes_patterns(causal_lm: Any) -> bool:
    """Whether a `Pattern` may replace the model's attention, tried on a few tokens.

    It may only replace torch's ``sdpa``, so that a user who asks for another implementation, such as ``eager``, gets
    it. It cannot in models with sliding windows, capped or otherwise changed attention scores, or layers without
    attention.
    """
    decoder = find_decoder(causal_lm)
    config = decoder.config
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if (
        not getattr(causal_lm, "_supports_attention_backend", False)
        or config._attn_implementation != "sdpa"
        or layer_types != {"full_attention"}
    ):
        return False
    device = causal_lm.device
    packed = shared_prefix(*PROBE, device)
    try:
        with attention(config, packed):
            hidden_KH = packed_hidden(decoder, packed)
    except NotImplementedError:
        return False
    expected = []
    for prompt, completion in zip(*PROBE, strict=True):
        ids = torch.tensor([[*prompt, *completion]], device=device)
        expected.append(decoder(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 : -1])
    expected_KH = torch.cat(expected)
    return torch.allclose(hidden_KH, expected_KH, rtol=1e-3, atol=1e-3 * float(expected_KH.abs().max()))


def packed_hidden(decoder: Any, packed: PackedRow) -> Tensor:
    """Compute the last hidden states that predict the completions' tokens: [K, H]. Call it within `attention`."""
    output = decoder(input_ids=packed.token_N[None], position_ids=packed.position_N[None], use_cache=False)
    hidden_KH: Tensor = output.last_hidden_state[0].index_select(0, packed.before_K)
    return hidden_KH
