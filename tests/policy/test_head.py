"""One output layer for sampling, plain forward passes and training, under bfloat16 autocast forced on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, PretrainedConfig

from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.policy import logprobs
from pacedrl.policy.logprobs import Head, OutputLayer, token_logprobs
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

CPU = torch.device("cpu")
GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 259,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS: dict[str, PretrainedConfig] = {
    "capped": Gemma2Config(**GROUPED, final_logit_softcapping=3.0),
    "scaled": CohereConfig(**GROUPED, logit_scale=0.25),
}


@pytest.fixture
def half(policy: Policy) -> Policy:
    """The tiny model as on a GPU: under autocast, with a copy of its prompt in each row."""
    policy.mixed_precision, policy.shares_prompts = True, False
    return policy


def drawn(policy: Policy, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]], list[list[float]]]:
    """Sample eight completions a prompt. Returns a prompt for each, the completions and their log-probabilities."""
    groups = dict(sample(policy, prompts, SamplingSettings(8, 16), list(range(len(prompts)))))
    rows = [(prompts[i], completion) for i, group in groups.items() for completion in group]
    return [p for p, _ in rows], [c.token_ids for _, c in rows], [c.logprobs for _, c in rows]


@pytest.mark.parametrize("way", ["columns", "padded"])
def test_sampler_and_trainer_agree_in_bfloat16(half: Policy, prompts: list[list[int]], way: Any) -> None:
    """A regression figure: 3.1e-4 nats a token on average; 4.6e-3 where autocast rounds the sampler's logits."""
    half.decoding = way
    repeated, completions, sampled = drawn(half, prompts)
    with torch.no_grad():
        logprobs_BT, _, mask_BT = half.logprobs(repeated, completions)
    gaps = [(row[mask] - torch.tensor(own)).abs() for row, mask, own in zip(logprobs_BT, mask_BT, sampled, strict=True)]
    assert 0 < float(torch.cat(gaps).mean()) < 6e-4


def test_gradients_in_bfloat16_point_where_those_in_float32_do(half: Policy, prompts: list[list[int]]) -> None:
    repeated, completions, _ = drawn(half, prompts)

    def gradient(mixed_precision: bool) -> Tensor:
        half.mixed_precision = mixed_precision
        logprobs_BT, _, _ = half.logprobs(repeated, completions)
        weight_BT = torch.randn(logprobs_BT.shape, generator=torch.Generator().manual_seed(1))
        return torch.cat([g.flatten() for g in torch.autograd.grad((logprobs_BT * weight_BT).sum(), half.parameters())])

    exact, rounded = gradient(False), gradient(True)
    assert exact.dtype == rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.999


@pytest.mark.parametrize("mixed_precision", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_a_plain_forward_pass_has_the_logits_that_training_uses(
    random_policy: Callable[[PretrainedConfig], Policy], name: str, mixed_precision: bool
) -> None:
    policy = random_policy(HEADS[name])
    policy.mixed_precision = mixed_precision
    ids = torch.tensor([[1, 9, 8, 7, 30, 31]])
    with torch.no_grad(), policy.autocast():
        logits_LV = policy.causal_lm(input_ids=ids).logits[0]
        hidden_LH = policy.decoder(input_ids=ids).last_hidden_state[0]
    expected_LV = policy.head.logits(hidden_LH)
    assert logits_LV.dtype == expected_LV.dtype == torch.float32
    torch.testing.assert_close(logits_LV, expected_LV, rtol=0, atol=1e-6)


def test_without_autocast_nothing_changes() -> None:
    usual = torch.nn.Linear(16, 40)
    ours = deepcopy(usual)
    ours.__class__ = OutputLayer
    hidden = torch.randn(2, 3, 16)
    assert torch.equal(ours(hidden), usual(hidden))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert usual(hidden).dtype == torch.bfloat16
        assert ours(hidden).dtype == torch.float32
        assert ours(hidden).shape == (2, 3, 40)
        assert ours(hidden[:0]).shape == (0, 3, 40)
    rounded = hidden.bfloat16().double() @ usual.weight.bfloat16().double().T + usual.bias.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(hidden).double(), rounded, rtol=1e-6, atol=1e-6)


def test_operands_are_rounded_to_bfloat16_and_results_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, width, vocabulary = 64, 8, 16
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 3 * vocabulary)  # of logits, and of the gradient of the weight
    hidden_KH = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight_VH = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    logprob_K, _ = token_logprobs(hidden_KH, Head(weight_VH, dtype=torch.bfloat16), torch.zeros(rows, dtype=torch.long))
    logprob_K.sum().backward()  # type: ignore[no-untyped-call]
    exact = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (hidden_KH, weight_VH)]
    expected_K = torch.log_softmax(exact[0] @ exact[1].T, dim=-1)[:, 0]
    expected_K.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logprob_K.double(), expected_K, rtol=0, atol=1e-5)
    for ours, theirs in zip((hidden_KH, weight_VH), exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=5e-3 * float(theirs.grad.abs().max()))


def test_the_gradient_of_the_weight_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bfloat16 sum of equal numbers stays at 256 times one of them."""
    rows = 4096
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 2)  # one row at a time
    weight_VH = torch.zeros(2, 1).requires_grad_()
    hidden_KH, target_K = torch.ones(rows, 1), torch.zeros(rows, dtype=torch.long)
    token_logprobs(hidden_KH, Head(weight_VH, dtype=torch.bfloat16), target_K)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert weight_VH.grad is not None
    assert weight_VH.grad.flatten().tolist() == [rows / 2, -rows / 2]


def test_copies_adapters_and_saved_models_keep_the_head(policy: Policy, tmp_path: Path) -> None:
    assert type(policy.causal_lm.get_output_embeddings()) is OutputLayer
    assert type(policy.frozen_copy().causal_lm.get_output_embeddings()) is OutputLayer
    policy.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain.get_output_embeddings()) is torch.nn.Linear
    ids = torch.tensor([[1, 9, 8, 7]])
    assert torch.equal(plain.eval()(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_a_tied_head_stays_tied(random_policy: Callable[[PretrainedConfig], Policy]) -> None:
    policy = random_policy(Gemma2Config(**GROUPED, tie_word_embeddings=True))
    linear = policy.causal_lm.get_output_embeddings()
    assert type(linear) is OutputLayer
    assert linear.weight is policy.causal_lm.get_input_embeddings().weight
    assert linear.weight is policy.head.weight_VH


def test_an_adapted_model_samples_and_trains_by_the_same_head(prompts: list[list[int]]) -> None:
    pytest.importorskip("peft")
    policy = Policy.load(ModelConfig(lora=LoraConfig(r=4, alpha=8)), CPU)
    policy.mixed_precision, policy.shares_prompts = True, False
    repeated, completions, sampled = drawn(policy, prompts[:2])
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs(repeated, completions)
    gaps = [(row[mask] - torch.tensor(own)).abs() for row, mask, own in zip(logprobs_BT, mask_BT, sampled, strict=True)]
    assert float(torch.cat(gaps).mean()) < 1e-3
