"""When a colocated vLLM sleeps, with a stand-in that records its calls, because vLLM cannot sleep on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pacedrl import Config, Trainer
from pacedrl.config import SamplingConfig
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import TransformersSampler
from pacedrl.policy.vllm.sampler import VllmSampler
from pacedrl.training.learner import Learner


class Calls:
    """Stand-in for ``vllm.LLM``."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.made: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*positional: Any, **named: Any) -> None:
            weights = named.pop("kwargs", {}).get("weights_iterator")
            told = [*positional, *named.values(), *([] if weights is None else [len(list(weights))])]
            self.made.append(" ".join([name, *map(str, told)]))

        return call


@pytest.fixture
def on_gpu(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """A policy that claims to be on a GPU, and a vLLM that records its calls."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=Calls))  # type: ignore[arg-type]
    policy.device = torch.device("cuda")
    return policy


def test_it_sleeps_from_rest_to_sync(on_gpu: Policy) -> None:
    sampler = VllmSampler(on_gpu, SamplingConfig())
    weights = len(list(on_gpu.weights()))
    awake = [f"collective_rpc reload_weights {weights}", "reset_prefix_cache"]
    assert sampler.llm.arguments["enable_sleep_mode"] is True
    assert sampler.llm.arguments["distributed_executor_backend"] is None
    assert sampler.llm.made == awake
    sampler.sync(on_gpu)
    assert sampler.llm.made == awake * 2
    sampler.llm.made.clear()
    sampler.rest()
    sampler.rest()
    sampler.sync(on_gpu)
    assert sampler.llm.made == ["sleep 2", "wake_up ['weights']", awake[0], "wake_up ['kv_cache']", awake[1]]


def test_it_does_not_sleep_where_it_draws_during_the_update(on_gpu: Policy) -> None:
    sampler = VllmSampler(on_gpu, SamplingConfig(ahead=True))
    assert sampler.llm.arguments["enable_sleep_mode"] is False
    sampler.llm.made.clear()
    sampler.rest()
    assert sampler.llm.made == []


def test_the_sampler_rests_during_every_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def note(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def noted(self: Any, *arguments: Any, **named: Any) -> Any:
            order.append(name)
            return original(self, *arguments, **named)

        monkeypatch.setattr(owner, name, noted)

    for name in ("sync", "sample", "rest"):
        note(TransformersSampler, name)
    note(Learner, "update")
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    config = Config(
        run={"dir": tmp_path / "run", "steps": 2},
        data={"train": {"source": "skills", "options": {"size": 16}}},
        sampling={"prompts_per_step": 2, "group_size": 2, "max_prompt_tokens": 32, "max_new_tokens": 4},
        verifier={"workers": 1},
    )
    Trainer(config).train()
    assert order == ["sync", "sample", "rest", "update"] * 2
