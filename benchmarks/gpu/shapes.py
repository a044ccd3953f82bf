"""Random models of known shapes, and random batches of completions, for the checks of correctness and speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from pacedrl.config import Config, OptimizerConfig
from pacedrl.policy.loading import TINY_MODEL, resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.training.learner import Learner
from pacedrl.training.objectives import build_objective
from pacedrl.types import Completion

SHAPES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 64, "layers": 2, "heads": 4, "key_values": 2, "mlp": 128, "vocabulary": 259},
    "0.5B": {"hidden_size": 896, "layers": 24, "heads": 14, "key_values": 2, "mlp": 4864, "vocabulary": 151_936},
    "1.5B": {"hidden_size": 1536, "layers": 28, "heads": 12, "key_values": 2, "mlp": 8960, "vocabulary": 151_936},
}
"""Qwen2.5's shapes, and one that a CPU can rehearse with."""
Mix = list[tuple[int, list[int]]]
"""For each prompt its length, and the lengths of its completions."""


def random_policy(shape: str, device: str, seed: int = 0) -> Policy:
    """Return a policy with random float32 weights and the tiny model's tokenizer."""
    size = SHAPES[shape]
    config = Qwen2Config(
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["key_values"],
        intermediate_size=size["mlp"],
        vocab_size=size["vocabulary"],
        max_position_embeddings=65_536,
        tie_word_embeddings=True,
    )
    where = resolve_device(device)
    torch.manual_seed(seed)
    with where:
        model = Qwen2ForCausalLM(config).eval()
    policy = Policy(model, AutoTokenizer.from_pretrained(TINY_MODEL), where)
    _ = policy.decoding, policy.packing  # chosen when they are first used, which must not be timed
    return policy


def mix(prompts: int, prompt: int, completions: int, lengths: str, longest: int, seed: int = 0) -> Mix:
    """Return the lengths of a batch: all completions ``even``, i.e. of the longest length, ``uniform`` up to it, or
    ``skewed``, of which a few reach it."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(prompts):
        share = torch.rand(completions, generator=generator)
        share = {"even": torch.ones(completions), "uniform": share, "skewed": share**3}[lengths]
        found.append((prompt, (share * longest).long().clamp_min(2).tolist()))
    return found


def random_batch(batch: Mix, vocabulary: int, seed: int = 0) -> list[Completion]:
    """Return completions of random tokens, with log-probabilities and advantages as if they had been sampled."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        ids: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
        return ids

    made = []
    for number, (length, lengths) in enumerate(batch):
        prompt = tokens(length)
        for count in lengths:
            completion = Completion(tokens(count), [-1.0] * count, reward=1.0, key=str(number), prompt_ids=prompt)
            completion.anchor_logprobs, completion.advantage = completion.logprobs, 1.0 - 2.0 * (count % 2)
            made.append(completion)
    return made


def learner(policy: Policy, **settings: Any) -> Learner:
    """Return a learner with the loss of GRPO; that of any other objective takes the same time and memory."""
    config = Config.model_validate({"recipe": "grpo"})
    optimizer = OptimizerConfig.model_validate({"learning_rate": 1e-6} | settings)
    return Learner(policy, optimizer, total_steps=1, temperature=1.0, loss=build_objective(config).loss)


def needs_gpu(device: str) -> dict[str, Any] | None:
    """Return what a check that only a GPU can pass reports on another device."""
    return None if device == "cuda" else {"ok": None, "needs": "a GPU"}


def seconds(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """Return the median wall-clock time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
