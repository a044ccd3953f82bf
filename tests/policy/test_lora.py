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


def half(prompts: IDS, completions: IDS) -> tuple[Policy, Policy]:
    """A trained adapter under bfloat16 autocast, as on a GPU, without and with its frozen weights in bfloat16."""
    whole, halved = adapted(), adapted()
    for policy in (whole, halved):
        train(policy, prompts, completions)
        policy.mixed_precision = True
    halved.halve_frozen_weights()
    return whole, halved


def test_frozen_weights_in_bfloat16_change_nothing_under_autocast(prompts: IDS, completions: IDS) -> None:
    whole, halved = half(prompts, completions)
    types = {name: parameter.dtype for name, parameter in halved.model.named_parameters()}
    assert {name for name, dtype in types.items() if dtype == torch.bfloat16} == {
        name for name in types if name.endswith("_proj.base_layer.weight")
    }
    assert all(parameter.dtype == torch.float32 for parameter in halved.parameters())
    outputs = [policy.logprobs(prompts, completions)[0] for policy in (whole, halved)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.sum().backward()
    for one, other in zip(whole.parameters(), halved.parameters(), strict=True):
        assert one.grad is not None
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
    assert halved.fingerprint() == whole.fingerprint()  # a run may go on on another device
    copied = halved.frozen_copy()
    assert torch.equal(copied.logprobs(prompts, completions)[0], outputs[0])
    assert not copied.parameters()


def test_an_adapter_for_a_gpu_is_checked_in_float32_on_the_cpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[str] = []
    place = Policy._place

    def here(self: Policy, device: torch.device) -> None:
        placed.append(device.type)
        place(self, CPU)
        self.mixed_precision = device.type == "cuda"

    monkeypatch.setattr(Policy, "_place", here)
    policy = Policy.load(CONFIG, torch.device("cuda:0"))
    assert placed == ["cpu", "cuda"]
    assert policy.shares_prompts
    assert policy.model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16
    placed.clear()
    Policy.load(ModelConfig(), torch.device("cuda:0"))  # all weights are trained, in float32
    assert placed == ["cuda"]


def test_merged_weights_are_made_one_at_a_time(prompts: IDS, completions: IDS, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halved = half(prompts, completions)
    expected = dict(whole.weights())
    layer = type(next(module for module in halved.model.modules() if hasattr(module, "get_delta_weight")))
    delta, made = layer.get_delta_weight, []
    monkeypatch.setattr(layer, "get_delta_weight", lambda *arguments: (made.append(1), delta(*arguments))[1])
    merged = 0
    for name, weight in halved.weights():
        merged += name.endswith("_proj.weight")
        assert len(made) == merged
        rounded = 2**-8 * float(expected[name].abs().max()) if name.endswith("_proj.weight") else 0.0
        torch.testing.assert_close(weight.float(), expected[name], rtol=0, atol=rounded)
    assert merged == 7 * 4
    assert any("lora" not in name and weight.dtype == torch.float32 for name, weight in halved.weights())
