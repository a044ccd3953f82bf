"""A random model that vLLM's CPU kernels support (heads of 64), with the tiny model's tokenizer, and its runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion

INSTALLED = importlib.util.find_spec("vllm") is not None
needs_vllm = pytest.mark.skipif(not INSTALLED, reason="vllm is not installed: run `make test-vllm`")
CPU = torch.device("cpu")
PROMPTS = [[1, 40, 41, 42, 43], [1, 50], [1, 60, 61, 62]]


def save_random_model(folder: Path) -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            vocab_size=259,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=True,
            initializer_range=0.08,
        )
    )
    model.save_pretrained(folder)
    Policy.load(ModelConfig(), CPU).tokenizer.save_pretrained(folder)


def change(policy: Policy) -> None:
    """Change the weights as training would."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


def assert_logprobs_are_the_policys(policy: Policy, groups: list[list[Completion]], temperature: float) -> None:
    """Check one group for each of `PROMPTS`."""
    prompts = [prompt for prompt, group in zip(PROMPTS, groups, strict=True) for _ in group]
    completions = [completion for group in groups for completion in group]
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs(prompts, [c.token_ids for c in completions], temperature)
    for completion, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True):
        assert completion.logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)


def run_settings(run: Path, model: Path, **sampling: Any) -> dict[str, Any]:
    """Return the configuration of a short run with the model."""
    shape = {"prompts_per_step": 4, "group_size": 4, "max_prompt_tokens": 48, "max_new_tokens": 8}
    return {
        "run": {"dir": str(run), "steps": 4},
        "model": {"name": str(model)},
        "data": {
            "train": {"source": "skills", "options": {"size": 24}},
            "eval": {"source": "skills", "split": "test", "options": {"size": 4}},
        },
        "sampling": shape | sampling,
        "optimizer": {"learning_rate": 1e-3},
        "eval": {"samples": 2, "k": [1]},
        "verifier": {"workers": 1},
    }
