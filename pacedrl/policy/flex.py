"""Attention of the update on a GPU: one packed row, of which FlexAttention computes only the blocks that are needed.

FlexAttention (arXiv 2412.05496) is torch's compiler for attention with masks. It skips pairs of blocks of `BLOCK`
tokens that do not see each other, so nothing is padded, and no mask of the size of the scores is made.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from pacedrl.policy.attention import PackedRow, shared_prefix
from pacedrl.policy.loading import one_line

log = logging.getLogger(__name__)

Pack = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], torch.device], PackedRow]
"""Packs completions with their prompts: (prompt ids, completion ids, device) → row."""

BLOCK = 128
"""Tokens in a block, FlexAttention's usual number."""
FEWEST_BLOCKS = 2
"""torch compiles a dimension of size 1 separately, so no row has a single block."""
STEPS_TO_A_POWER = 16
"""A long row's length is rounded up to a multiple of this part of the next power of two, so there are 8 lengths between
a power of two and the next. With more, torch would allocate anew more often; with fewer, more would be padding."""
PROBED_TOLERANCE = 0.05
"""Largest difference, relative to the largest number, between FlexAttention and causal attention in bfloat16. Rounding
gives less than 0.01, a wrong mask about 1."""


class Segment(NamedTuple):
    """A prompt, or the input of a completion: the tokens from ``start`` to ``stop`` of the row."""

    start: int
    stop: int
    prompt_start: int
    prompt_stop: int


@dataclass(frozen=True)
class FlexRow(PackedRow):
    """Each prompt, directly followed by its completions, then padding, whose tokens attend to themselves alone."""

    block_mask: BlockMask

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, layer: int) -> Tensor:
        # Rotary embeddings return float32 even under autocast; FlexAttention needs one type.
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        grouped = query.shape[1] != key.shape[1]
        output: Tensor = compiled_attention()(
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            block_mask=self.block_mask,
            scale=scale,
            enable_gqa=grouped,
        )
        return output


@cache
def compiled_attention() -> Callable[..., Any]:
    """Return the compiled FlexAttention; not compiled, it would hold all scores.

    ``fullgraph`` makes it fail when torch refuses to compile it once more, instead of running it uncompiled.
    """
    compiled: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True)
    return compiled


def choose_packing(config: Any, device: torch.device) -> Pack:
    """Return `flex_row` on a GPU if FlexAttention works for the heads of ``config``, else `shared_prefix`.

    A warning says why a GPU has to pad.
    """
    if device.type != "cuda":
        return shared_prefix  # on a CPU, FlexAttention has no backward pass
    problem = flex_problem(config, device)
    if problem is None:
        return flex_row
    log.warning("pacedrl: updates will be slower, with attention padded, because FlexAttention %s", problem)
    return shared_prefix


def flex_problem(config: Any, device: torch.device) -> str | None:
    """Say what is wrong with FlexAttention on this device for the heads of a model; None if it works.

    It is compiled, forward and backward, for two lengths, after which torch compiles for all lengths at once, and its
    output and gradients are compared with those of causal attention. DeepSeek's values have a size of their own.
    """
    try:
        heads = config.num_attention_heads
        shared_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_size, value_size = (getattr(config, name, None) or size for name in ("qk_head_dim", "v_head_dim"))
        for blocks in (FEWEST_BLOCKS, FEWEST_BLOCKS + 1):
            length = BLOCK * blocks
            row = flex_row([[0] * BLOCK], [[0] * (length - BLOCK + 1)], device)
            # In the layout and under the autocast of training, so that what is compiled here is what is used there.
            states = [
                torch.randn(1, length, count, width, device=device).transpose(1, 2).requires_grad_()
                for count, width in ((heads, key_size), (shared_heads, key_size), (shared_heads, value_size))
            ]
            query, key, value = states
            each_key, each_value = (state.repeat_interleave(heads // shared_heads, dim=1) for state in (key, value))
            with torch.enable_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
                ours = row.attend(query, key, value, key_size**-0.5, 0)
                usual = scaled_dot_product_attention(query, each_key, each_value, is_causal=True)
            upstream = torch.randn_like(ours)
            found = [ours, *torch.autograd.grad(ours, states, upstream)]
            expected = [usual, *torch.autograd.grad(usual, states, upstream)]
            if not all(map(_close, found, expected)):
                return "computes something else than causal attention"
    except Exception as error:  # compilers, drivers and kernels raise errors of no common type
        return f"fails ({one_line(error)})"
    return None


def _close(one: Tensor, other: Tensor) -> bool:
    largest = float(other.detach().abs().max())
    return float((one - other).detach().abs().max()) <= PROBED_TOLERANCE * largest  # False for NaN


def flex_row(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], device: torch.device
) -> FlexRow:
    """Pack completions with their prompts; equal prompts are packed once. Every completion has at least one token.

    A prompt and its completions are neighbours, so short ones share a block and see few others. The row is padded with
    token 0 at position 0, which every model has.
    """
    members: dict[tuple[int, ...], list[int]] = {}
    for i, ids in enumerate(prompt_ids):
        members.setdefault(tuple(ids), []).append(i)
    tokens: list[int] = []
    positions: list[int] = []
    before: list[list[int]] = [[]] * len(completion_ids)
    segments: list[Segment] = []
    for prompt, completions in members.items():
        start, stop = len(tokens), len(tokens) + len(prompt)
        tokens += prompt
        positions += range(len(prompt))
        segments.append(Segment(start, stop, start, stop))
        for i in completions:
            first = len(tokens)
            tokens += completion_ids[i][:-1]
            positions += range(len(prompt), len(prompt) + len(tokens) - first)
            before[i] = [stop - 1, *range(first, len(tokens))]
            segments.append(Segment(first, len(tokens), start, stop))
    used, length = len(tokens), padded_length(len(tokens))
    segments += [Segment(i, i + 1, i, i + 1) for i in range(used, length)]
    padding = [0] * (length - used)

    def tensor(values: Any, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.as_tensor(values, dtype=dtype, device=device)

    return FlexRow(
        tensor(tokens + padding),
        tensor(positions + padding),
        tensor([place for places in before for place in places]),
        block_mask(segments, length, device),
    )


def padded_length(tokens: int) -> int:
    """Round a row's length up to whole blocks and, so that lengths recur, as `STEPS_TO_A_POWER` says."""
    step = max(BLOCK, (1 << (tokens - 1).bit_length()) // STEPS_TO_A_POWER)
    return max(FEWEST_BLOCKS * BLOCK, -(-tokens // step) * step)


def block_mask(segments: Sequence[Segment], length: int, device: torch.device) -> BlockMask:
    """Build FlexAttention's mask of segments that together make up the row, in their order.

    A token sees the earlier tokens of its own segment, itself, and its prompt. Only the map of blocks is made on the
    host; FlexAttention asks the mask about single tokens in blocks that see each other in part.
    """
    bounds = np.array(segments, dtype=np.int32)
    sizes = bounds[:, 1] - bounds[:, 0]
    segment_N = torch.as_tensor(np.repeat(bounds[:, 0], sizes), device=device)
    prompt_N = torch.as_tensor(np.repeat(bounds[:, 2], sizes), device=device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = segment_N[key]
        return (key <= query) & ((seen == segment_N[query]) | (seen == prompt_N[query]))

    some_QK, all_QK = block_maps(segments, length // BLOCK)
    partial = _listed(some_QK & ~all_QK, device)
    return BlockMask.from_kv_blocks(*partial, *_listed(all_QK, device), BLOCK_SIZE=BLOCK, mask_mod=sees)


def block_maps(segments: Sequence[Segment], blocks: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, for each pair of blocks, whether some token of one sees some of the other, and whether all do: [Q, K].

    The second is False in a few pairs where all do: across the border of a prompt and its first completion.
    """
    some_QK = np.zeros((blocks, blocks), dtype=np.bool_)
    all_QK = np.zeros_like(some_QK)
    for _, neighbours in groupby(segments, key=lambda segment: segment.prompt_start):
        group = list(neighbours)
        prompt = group[0].prompt_start, group[0].prompt_stop
        all_QK[_inside(group[0].start, group[-1].stop), _inside(*prompt)] = True
        for segment in group:
            own = segment.start, segment.stop
            all_QK[_inside(*own), _inside(*own)] = True
            some_QK[_touched(*own), _touched(*own)] = True
            some_QK[_touched(*own), _touched(*prompt)] = True
    return np.tril(some_QK), np.tril(all_QK, -1)


def _inside(start: int, stop: int) -> slice:
    """Return the blocks whose tokens are all among those from ``start`` to ``stop``."""
    return slice(-(-start // BLOCK), stop // BLOCK)


def _touched(start: int, stop: int) -> slice:
    """Return the blocks that hold some of the tokens from ``start`` to ``stop``; none if there are none."""
    return slice(start // BLOCK, -(-stop // BLOCK) if stop > start else 0)


def _listed(map_QK: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return each query block's number of key blocks, [1, 1, Q], and these first among all, [1, 1, Q, K], int32."""
    indices_QK = np.argsort(~map_QK, axis=1, kind="stable").astype(np.int32)
    counts_Q = map_QK.sum(axis=1, dtype=np.int32)
    return torch.as_tensor(counts_Q, device=device)[None, None], torch.as_tensor(indices_QK, device=device)[None, None]
