"""Measure where the time of sampling and of an update goes: before, with transformers' own code, and after, with ours.

    python benchmarks/breakdown.py                   # SmolLM2-135M on 2 cores: about two minutes

The shapes are those of benchmarks/step.py. Before: ``generate`` for sampling; for the update, 8 sequences at a time as
in TRL, each with its own prompt, padded, with all logits and ``log_softmax``. After: `pacedrl.policy.sampler.sample`,
and `Policy.logprobs` with shared prompts, 640 tokens at a time. torch's profiler attributes each operation's own time
to a kind of operation. Sampling is profiled for 16 tokens after the prompt, the update for one micro-batch. ``make
smollm2`` fetches the model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from generate import COMPLETIONS, PROMPTS, loaded, ours, plain
from torch.profiler import ProfilerActivity, profile

from pacedrl.policy.passes import micro_batches
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion

KINDS = {
    "matrix multiply": ("aten::mm", "aten::addmm", "aten::bmm", "linear_pointwise"),
    "attention": ("scaled_dot_product", "flash_attention"),
    "softmax and draw": ("softmax", "logsumexp", "exp", "multinomial", "sort", "cumsum", "gather", "scatter", "vecdot"),
    "copies": ("cat", "copy_", "clone", "index", "fill_", "zero_", "slice_backward"),
}
"""Kind of operation → parts of the names of its operations."""
REST = "the rest"
NEW_TOKENS = 16
Shares = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    policy, model, prompts = loaded()
    generator = torch.Generator().manual_seed(0)
    completions = [torch.randint(5, 40_000, (64,), generator=generator).tolist() for _ in range(PROMPTS * COMPLETIONS)]
    sequences = [
        Completion(completion, [], prompt_ids=prompt, advantage=1.0)
        for prompt, completion in zip([p for p in prompts for _ in range(COMPLETIONS)], completions, strict=True)
    ]
    ways: dict[str, Callable[[], object]] = {
        "sampling, before": lambda: plain(model, prompts, NEW_TOKENS, policy.pad_id),
        "sampling, after": lambda: ours(policy, prompts, NEW_TOKENS),
        "update, before": lambda: plain_update(model, sequences[:8]),
        "update, after": lambda: shared_update(policy, sequences),
    }
    found = {name: shares(way) for name, way in ways.items()}
    print(f"{'':20}" + "".join(f"{kind:>18}" for kind in [*KINDS, REST]))
    for name, row in found.items():
        print(f"{name:20}" + "".join(f"{row[kind]:>18.0%}" for kind in [*KINDS, REST]))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def plain_update(model: torch.nn.Module, sequences: list[Completion]) -> None:
    """Run one micro-batch forward and backward; its prompts have the same length."""
    longest = max(s.length for s in sequences)
    rows = [[0] * (longest - s.length) + [*s.prompt_ids, *s.token_ids] for s in sequences]
    ids_BL = torch.tensor(rows)
    logits_BLV = model(input_ids=ids_BL, attention_mask=torch.ones_like(ids_BL)).logits[:, -65:-1]
    torch.log_softmax(logits_BLV, dim=-1).gather(2, ids_BL[:, -64:, None]).sum().backward()


def shared_update(policy: Policy, sequences: list[Completion]) -> None:
    part = [sequences[i] for i in micro_batches(sequences, 640, policy.takes_patterns)[0]]
    logprobs_BT, _, _ = policy.logprobs([s.prompt_ids for s in part], [s.token_ids for s in part])
    logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]


def shares(way: Callable[[], object]) -> Shares:
    """Measure each kind of operation's share of the processor's time, in the second of two runs."""
    way()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        way()
    totals = dict.fromkeys([*KINDS, REST], 0.0)
    for event in recorded.key_averages():
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), REST)
        totals[kind] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {kind: value / whole for kind, value in totals.items()}


if __name__ == "__main__":
    main()
