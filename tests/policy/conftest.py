"""Policies on the built-in tiny model, and on random models of other architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from pacedrl.policy.policy import Policy


@pytest.fixture(scope="session")
def tiny(load_tiny: Callable[[], Policy]) -> Policy:
    """A policy that all tests share and must not change."""
    return load_tiny()


@pytest.fixture
def policy(load_tiny: Callable[[], Policy]) -> Policy:
    """A policy of the test's own, to train, save or break."""
    return load_tiny()


@pytest.fixture(scope="session")
def prompts(tiny: Policy) -> list[list[int]]:
    """Prompts of different lengths, the longest neither first nor last."""
    texts = ["sort:312=", "copy:12=", "add:1234567+7654321=", "reverse:4567=", "negate:90="]
    return [tiny.encode(text) for text in texts]


@pytest.fixture(scope="session")
def completions(tiny: Policy) -> list[list[int]]:
    """One completion per prompt, of different lengths, the first shorter than the longest."""
    return [[*tiny.encode(text)[1:], *tiny.eos_ids] for text in ["123", "", "8888888", "7654", "0"]]


@pytest.fixture(scope="session")
def random_policy(tiny: Policy) -> Callable[[PretrainedConfig], Policy]:
    """A float32 policy on a random model of the given configuration, with the tiny model's tokenizer."""

    def build(config: PretrainedConfig) -> Policy:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = AutoModelForCausalLM.from_config(config)
            head = model.get_output_embeddings()
            torch.nn.init.normal_(head.weight, std=0.5)  # large enough to show scales and caps
            if head.bias is not None:
                torch.nn.init.normal_(head.bias)
        policy = Policy(model.eval(), tiny.tokenizer, tiny.device)
        policy.mixed_precision = False
        return policy

    return build
