"""Measure each choice behind sampling and learning alone: seconds of the alternative and of the choice.

    python benchmarks/choices.py                    # half a minute on 2 cores

The shapes are those of SmolLM2-135M (hidden size 576, 9 heads and 3 key-value heads of 64, vocabulary 49,152), in
float32 unless stated otherwise. Each time is the best of several rounds. Prints the seconds and their ratio.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from pacedrl.policy.cpu import keep_freed_memory, packed_weights
from pacedrl.policy.shared_prompts import SharedPromptPattern

HIDDEN, INNER, VOCABULARY, HEADS, KEY_HEADS, SIZE = 576, 1536, 49_152, 9, 3, 64
ROWS, CONTEXT, PACKED = 64, 150, 640
PROMPTS, OWN = 8, 55
"""Number of prompts of the decoding rows, and of tokens that each row has after its prompt."""
ROUNDS = 5
Way = Callable[[], object]
stay_packed = ExitStack()
"""Keeps weights packed until both ways have been timed."""


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    pairs = {
        "memory": memory,  # first, with an empty heap; the setting that it turns on stays on, as in a run
        "packed body": lambda: packed(HIDDEN, INNER, 20),
        "packed head": lambda: packed(HIDDEN, VOCABULARY, 1),
        "joined": lambda: joined(10),
        "grouped heads": grouped_heads,
        "shared prompts": lambda: shared_prompts(CONTEXT - OWN, 30),
        "shared long prompts": lambda: shared_prompts(1000, 5),
        "fused attention": fused_attention,
        "bfloat16": lower_precision,
        "AdamW": optimizers,
    }
    for name, pair in pairs.items():
        before, after = (best(way) for way in pair())
        stay_packed.close()
        found[name] = {"before": before, "after": after}
        print(f"{name:20}{before * 1e3:10.2f} ms{after * 1e3:10.2f} ms{before / after:8.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def best(way: Way) -> float:
    way()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def packed(inputs: int, outputs: int, count: int) -> tuple[Way, Way]:
    """Multiply decoding rows by ``count`` matrices in turn: with torch's multiplication, and with packed weights."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(inputs, outputs, bias=False) for _ in range(count)))
    hidden = torch.randn(ROWS, inputs)

    def plain() -> None:
        for layer in layers:
            linear(hidden, layer.weight)

    return plain, by_packed(layers, hidden)


def joined(count: int) -> tuple[Way, Way]:
    """A layer's multiplications with packed weights: q, k, v, gate and up alone, and joined into two."""
    hidden, key_size = torch.randn(ROWS, HIDDEN), KEY_HEADS * SIZE

    def multiplying(*outputs: int) -> Way:
        matrices = [torch.nn.Linear(HIDDEN, size, bias=False) for _ in range(count) for size in outputs]
        return by_packed(torch.nn.Sequential(*matrices), hidden)

    return multiplying(HIDDEN, key_size, key_size, INNER, INNER), multiplying(HIDDEN + 2 * key_size, 2 * INNER)


def by_packed(layers: torch.nn.Sequential, hidden: Tensor) -> Way:
    """Pack the weights now, as happens once a step, and return the multiplication by them."""
    stay_packed.enter_context(packed_weights(layers, ROWS))

    def way() -> None:
        for layer in layers:
            layer(hidden)

    return way


def heads(rows: int, tokens: int, count: int) -> Tensor:
    return torch.randn(rows, count, tokens, SIZE)


def grouped_heads() -> tuple[Way, Way]:
    """A decoding step's attention with repeated key-value heads, and with grouped heads."""
    query, key, value = heads(ROWS, 1, HEADS), heads(ROWS, CONTEXT, KEY_HEADS), heads(ROWS, CONTEXT, KEY_HEADS)
    mask = torch.ones(ROWS, 1, 1, CONTEXT, dtype=torch.bool)
    times = HEADS // KEY_HEADS
    return (
        lambda: scaled_dot_product_attention(
            query, key.repeat_interleave(times, 1), value.repeat_interleave(times, 1), attn_mask=mask
        ),
        lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True),
    )


def shared_prompts(tokens: int, layers: int) -> tuple[Way, Way]:
    """A decoding step's attention: fused over caches that repeat the prompts, and over one copy of each prompt."""
    query, mask = heads(ROWS, 1, HEADS), torch.ones(ROWS, 1, 1, tokens + OWN, dtype=torch.bool)
    copied = [(heads(ROWS, tokens + OWN, KEY_HEADS), heads(ROWS, tokens + OWN, KEY_HEADS)) for _ in range(layers)]
    prompts = [(heads(PROMPTS, tokens, KEY_HEADS), heads(PROMPTS, tokens, KEY_HEADS)) for _ in copied]
    own = [(heads(ROWS, OWN, KEY_HEADS), heads(ROWS, OWN, KEY_HEADS)) for _ in copied]
    prompt_bias, own_bias = torch.zeros(PROMPTS, 1, 1, tokens), torch.zeros(ROWS, 1, 1, OWN)
    pattern = SharedPromptPattern(prompts, prompt_bias, own_bias, ROWS // PROMPTS, None)

    def fused() -> None:
        for key, value in copied:
            scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    def shared() -> None:
        for layer, (key, value) in enumerate(own):
            pattern.attend(query, key, value, None, layer)

    return fused, shared


def fused_attention() -> tuple[Way, Way]:
    """Attention of packed completions: as two batched matrix multiplications with a softmax, and fused."""
    rows, tokens = 8, CONTEXT
    query, key, value = (heads(rows, tokens, HEADS) for _ in range(3))
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()

    def by_products() -> Tensor:
        scores = (query @ key.transpose(-1, -2)) * SIZE**-0.5
        return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1) @ value

    return by_products, lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask)


def lower_precision() -> tuple[Way, Way]:
    """A matrix multiplication in float32, and in bfloat16."""
    left, right = torch.randn(PACKED, HIDDEN), torch.randn(HIDDEN, INNER)
    half = left.bfloat16(), right.bfloat16()
    return lambda: left @ right, lambda: half[0] @ half[1]


def optimizers() -> tuple[Way, Way]:
    """A step of AdamW on 28 million parameters: unfused, and fused."""

    def stepping(fused: bool) -> Way:
        parameter = torch.nn.Parameter(torch.randn(VOCABULARY, HIDDEN))
        parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW([parameter], lr=1e-5, weight_decay=0.1, fused=fused).step

    return stepping(False), stepping(True)


def memory() -> tuple[Way, Way]:
    """Allocating, filling and freeing 64 MiB: returned to the kernel each time, and kept."""

    def fill() -> None:
        torch.empty(2**24).fill_(1.0)

    def kept() -> None:
        keep_freed_memory()
        fill()

    return fill, kept


if __name__ == "__main__":
    main()
