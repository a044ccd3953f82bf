"""Training a low-rank adapter instead of the whole tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

pytest.importorskip("peft")
CPU = torch.device("cpu")
CONFIG = ModelConfig(lora=LoraConfig(r=4, alpha=8))
IDS = list[list[int]]


def adapted(seed: int = 0) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy.load(CONFIG, CPU)


def train(policy: Policy, prompts: IDS, completions: IDS, rate: float = 0.01) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    for _ in range(3):
        optimizer.zero_grad()
        (-policy.logprobs(prompts, completions)[0].sum()).backward()
        optimizer.step()
    optimizer.zero_grad()


def values(policy: Policy) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def test_a_fresh_adapter_changes_nothing(tiny: Policy, prompts: IDS, completions: IDS) -> None:
    policy = adapted()
    assert torch.equal(policy.logprobs(prompts, completions)[0], tiny.logprobs(prompts, completions)[0])
    assert torch.equal(policy.embed(prompts), tiny.embed(prompts))
    assert torch.equal(policy.embed(prompts, layer="middle"), tiny.embed(prompts, layer="middle"))


def test_only_the_adapter_trains(prompts: IDS, completions: IDS) -> None:
    policy = adapted()
    trainable = [name for name, parameter in policy.model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 7 * 4  # A and B of seven linear layers in each of four blocks, without the head
    assert all("lora_" in name for name in trainable)
    assert len(policy.parameters()) == len(trainable)
    before = values(policy)
    train(policy, prompts, completions)
    changed = {name for name, value in values(policy).items() if not torch.equal(value, before[name])}
    assert changed == set(trainable)
    assert policy.head.weight_VH.grad is None


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapter_gets_its_gradient_also_with_checkpointing(
    prompts: IDS, completions: IDS, checkpointing: bool
) -> None:
    policy = adapted()
    with gradient_checkpointing(policy.causal_lm, checkpointing):
        policy.logprobs(prompts, completions)[0].sum().backward()
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0


def test_a_checkpoint_brings_back_the_adapter_and_trains_on(
    tiny: Policy, prompts: IDS, completions: IDS, tmp_path: Path
) -> None:
    policy = adapted()
    train(policy, prompts, completions)
    policy.save(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists()
    assert not (tmp_path / "model.safetensors").exists()
    again = Policy.load(CONFIG, CPU, tmp_path)
    expected = policy.logprobs(prompts, completions)[0]
    assert torch.equal(again.logprobs(prompts, completions)[0], expected)
    assert not torch.allclose(expected, tiny.logprobs(prompts, completions)[0], atol=1e-2)
    assert len(again.parameters()) == len(policy.parameters())
    train(policy, prompts, completions)
    train(again, prompts, completions)
    for name, value in values(policy).items():
        assert torch.equal(values(again)[name], value)


def test_the_fingerprint_is_of_what_is_adapted(policy: Policy, prompts: IDS, completions: IDS, tmp_path: Path) -> None:
    one, other = adapted(seed=1), adapted(seed=2)
    differing = [n for n, value in values(one).items() if not torch.equal(value, values(other)[n])]
    assert differing
    assert all("lora_A" in name for name in differing)
    assert one.fingerprint() == other.fingerprint()
    with torch.no_grad():
        policy.model.model.norm.weight += 0.01
    policy.save(tmp_path)
    elsewhere = Policy.load(ModelConfig(name=str(tmp_path), lora=CONFIG.lora), CPU)
    assert elsewhere.fingerprint() != one.fingerprint()


def test_the_adapted_model_is_the_one_that_samples(prompts: IDS) -> None:
    policy = adapted()
    train(policy, prompts, [[26, 26, 26, 2]] * len(prompts), rate=0.03)
    settings = SamplingSettings(group_size=8, max_new_tokens=6)
    completions = [c for _, group in sample(policy, prompts[:1], settings, [0]) for c in group]
    logprobs_BT, _, mask_BT = policy.logprobs(prompts[:1] * 8, [c.token_ids for c in completions])
    for completion, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True):
        assert completion.logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)
