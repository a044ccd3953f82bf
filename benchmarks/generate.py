"""Compare three ways of sampling in one process: our sampler, transformers' generate and its continuous batching.

    python benchmarks/generate.py                    # SmolLM2-135M on 2 cores: some minutes
    python benchmarks/generate.py --rounds 5

The work is that of benchmarks/step.py: 8 prompts of about 95 tokens × 8 completions of exactly 64 new tokens, in
float32, sampled at temperature 1 with log-probabilities. The ways alternate, after one round that is not counted.
Prints medians and ranges of seconds, tokens per second and the ratio to pacedrl's sampler. ``make smollm2`` fetches the
model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import save_model, word_problems
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

PROMPTS, COMPLETIONS = 8, 8
PAGE = 32  # tokens per page of transformers' paged cache; 64 sequences of about 160 tokens take 320 pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    policy, model, prompt_ids = loaded()
    new = options.new_tokens
    ways: dict[str, Callable[[], int]] = {
        "ours": lambda: ours(policy, prompt_ids, new),
        "generate": lambda: plain(model, prompt_ids, new, policy.pad_id),
        "generate_batch": lambda: batch(model, prompt_ids, new, policy.pad_id),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            tokens = way()
            elapsed = time.perf_counter() - start
            assert tokens == PROMPTS * COMPLETIONS * new, f"{name} generated {tokens} tokens"
            if number:
                seconds[name].append(elapsed)
    own = statistics.median(seconds["ours"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"{name:15}{median:8.2f} s ({min(values):.2f}-{max(values):.2f}, {len(values)} rounds)"
            f"{PROMPTS * COMPLETIONS * new / median:8.0f} tokens/s{median / own:8.2f} of ours"
        )
    if options.json:
        options.json.write_text(json.dumps(seconds, indent=1) + "\n")


def loaded() -> tuple[Policy, Any, list[list[int]]]:
    """Load pacedrl's policy, with no end token, transformers' model and the prompts."""
    with tempfile.TemporaryDirectory() as name:
        save_model(Path(name))
        policy = Policy.load(ModelConfig(name=name), torch.device("cpu"))
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    prompt_ids = [policy.encode(row["prompt"]) for row in word_problems(PROMPTS)]
    policy.eos_ids = [-1]
    return policy, model, prompt_ids


def ours(policy: Policy, prompt_ids: list[list[int]], new: int) -> int:
    settings = SamplingSettings(COMPLETIONS, new, batch_size=PROMPTS * COMPLETIONS)
    groups = sample(policy, prompt_ids, settings, range(len(prompt_ids)))
    return sum(len(one.token_ids) for _, group in groups for one in group)


@torch.no_grad()
def plain(model: torch.nn.Module, prompt_ids: list[list[int]], new: int, pad: int) -> int:
    longest = max(map(len, prompt_ids))
    rows = [ids for ids in prompt_ids for _ in range(COMPLETIONS)]
    ids_BL = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows])
    mask_BL = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows])
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
    )
    made = model.generate(ids_BL, attention_mask=mask_BL, generation_config=config)
    for i, logits_BV in enumerate(made.logits):
        torch.log_softmax(logits_BV, dim=-1).gather(1, made.sequences[:, longest + i, None])
    return int(made.sequences[:, longest:].numel())


def batch(model: torch.nn.Module, prompt_ids: list[list[int]], new: int, pad: int) -> int:
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=new,
        eos_token_id=-1,
        pad_token_id=pad,
        num_return_sequences=COMPLETIONS,
    )
    batching = ContinuousBatchingConfig(
        return_logprobs=True, page_size=PAGE, num_blocks=512, max_batch_tokens=1024, use_cuda_graph=False
    )
    made = model.generate_batch(prompt_ids, generation_config=config, continuous_batching_config=batching)
    assert all(len(one.logprobs) == len(one.generated_tokens) for one in made.values())
    return sum(len(one.generated_tokens) for one in made.values())


if __name__ == "__main__":
    main()
