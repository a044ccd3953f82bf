"""Completions that share a prompt's forward pass, and decoding with our own attention, on several architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import eager_attention_forward

from pacedrl.config import ModelConfig
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.attention import attention, shared_prefix
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample

Build = Callable[[PretrainedConfig], Policy]
CPU = torch.device("cpu")
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 259,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: dict[str, Any] = SIZE | {"num_key_value_heads": 2}
OPT = OPTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, vocab_size=259)
OPT.max_position_embeddings, OPT.word_embed_proj_dim = 64, 16
USUAL = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=16),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=259, n_positions=64, eos_token_id=2, bos_token_id=1),
    "gpt_neox": GPTNeoXConfig(**SIZE),
    "phi": PhiConfig(**SIZE),
    "opt": OPT,
}
ONE_HEAD = LlamaConfig(**SIZE | {"num_key_value_heads": 1, "head_dim": 16, "attention_bias": True})
COMPRESSED = DeepseekV3Config(
    **SIZE,
    num_key_value_heads=4,
    q_lora_rank=16,
    kv_lora_rank=8,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=16,
    first_k_dense_replace=2,
)
UNUSUAL = {
    "gemma2, capped scores and sliding windows": Gemma2Config(**GROUPED, head_dim=8, sliding_window=4),
    "mistral, sliding windows": MistralConfig(**GROUPED, sliding_window=4),
}
PROMPTS = [[1, 9, 8, 7], [1, 5], [1, 9, 8, 7], [1, 5], [1, 9, 8, 7], [1, 30, 31, 32, 33, 34, 35]]
COMPLETIONS = [[40, 41, 42, 2], [2], [43], [44, 45, 46, 47, 48, 2], [49, 2], [50, 51]]


def gradients(policy: Policy, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probabilities and the gradient of their sum with a different weight for every token."""
    logprobs_BT, _, _ = policy.logprobs(PROMPTS, COMPLETIONS)
    policy.model.zero_grad()
    (logprobs_BT * weights.to(policy.device)).sum().backward()  # type: ignore[no-untyped-call]
    return logprobs_BT.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", USUAL.values(), ids=USUAL)
def test_sharing_prompts_changes_neither_logprobs_nor_gradients(
    random_policy: Build, config: PretrainedConfig, checkpointing: bool
) -> None:
    policy = random_policy(config)
    assert policy.takes_patterns
    weights = torch.randn(len(PROMPTS), 6, generator=torch.Generator().manual_seed(1))
    with gradient_checkpointing(policy.causal_lm, checkpointing):
        ours, our_gradients = gradients(policy, weights)
    policy.takes_patterns = False
    theirs, their_gradients = gradients(policy, weights)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    rounding = 1e-6 * max(float(gradient.abs().max()) for gradient in their_gradients.values())
    for name, expected in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], expected, rtol=1e-3, atol=rounding)


@pytest.mark.parametrize("config", UNUSUAL.values(), ids=UNUSUAL)
def test_models_whose_attention_is_their_own_keep_it(random_policy: Build, config: PretrainedConfig) -> None:
    policy = random_policy(config)
    assert not policy.takes_patterns
    logprobs_BT, _, _ = policy.logprobs(PROMPTS, COMPLETIONS)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = torch.tensor([prompt + completion], device=policy.device)
        logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        expected_T = torch.log_softmax(logits, dim=-1)[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(logprobs_BT[i, : len(completion)], expected_T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", [*USUAL.values(), *UNUSUAL.values()], ids=[*USUAL, *UNUSUAL])
def test_greedy_decoding_is_what_transformers_generates(random_policy: Build, config: PretrainedConfig) -> None:
    """Rows leave, join and outgrow the cache: two of five groups at once, with up to 20 new tokens."""
    policy = random_policy(config)
    prompts = [[1, 9, 8, 7], [1, 5], [1, 30, 31, 32, 33, 34, 35], [1, 60, 61], [1, 5, 5, 5, 5, 5]]
    found = dict(sample(policy, prompts, SamplingSettings(2, 20, temperature=0.0, batch_size=4), [0] * 5))
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt], device=policy.device)
        expected = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20, pad_token_id=0
        )
        assert [completion.token_ids for completion in found[i]] == [expected[0, len(prompt) :].tolist()] * 2


def caches_compressed(policy: Policy) -> bool:
    """DeepSeek's keys are cached before they are expanded to one per head; older transformers cache them afterwards."""
    cache = policy.model(input_ids=torch.tensor([[1, 9]], device=policy.device), use_cache=True).past_key_values
    return bool(cache.layers[0].keys.shape[1] < policy.config.num_key_value_heads)


DECODED = USUAL | UNUSUAL | {"one key-value head, biases": ONE_HEAD, "a compressed cache": COMPRESSED}


@pytest.mark.parametrize("name", DECODED)
def test_completions_that_end_one_by_one_are_drawn_from_the_policy(random_policy: Build, name: str) -> None:
    """Groups of three lose members, end before others, make room for new groups and are moved in the caches."""
    policy = random_policy(DECODED[name])
    compressed = name == "a compressed cache" and caches_compressed(policy)
    assert policy.shares_prompts == (name not in UNUSUAL and not compressed)
    policy.eos_ids = sorted(range(0, 259, 4))
    prompts = [[1, 9, 8, 7], [1, 5], [1, 30, 31, 32, 33, 34, 35], [1, 60, 61], [1, 5, 5, 5, 5, 5], [1, 70], [1, 80, 9]]
    found = dict(sample(policy, prompts, SamplingSettings(3, 20, temperature=4.0, batch_size=9), list(range(7))))
    assert len({len(completion.token_ids) for group in found.values() for completion in group}) > 2
    repeated = [prompt for prompt in prompts for _ in range(3)]
    completions = [completion for i in range(7) for completion in found[i]]
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs(repeated, [c.token_ids for c in completions], 4.0)
    for completion, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True):
        torch.testing.assert_close(torch.tensor(completion.logprobs), row[mask].cpu(), rtol=0, atol=3e-5)
    policy.shares_prompts = False  # each row then has a copy of its prompt
    copied = dict(sample(policy, prompts, SamplingSettings(3, 20, temperature=4.0, batch_size=9), list(range(7))))
    assert [c.token_ids for i in range(7) for c in copied[i]] == [c.token_ids for c in completions]


def test_a_layer_that_asks_for_more_than_a_pattern_can_do_is_not_given_one(random_policy: Build) -> None:
    policy = random_policy(MistralConfig(**GROUPED, sliding_window=4))
    packed = shared_prefix(PROMPTS, COMPLETIONS, policy.device)
    with (
        pytest.raises(NotImplementedError, match="MistralAttention asks for sliding_window"),
        attention(policy.config, packed),
    ):
        policy.causal_lm.get_decoder()(input_ids=packed.token_N[None], position_ids=packed.position_N[None])
    assert policy.config._attn_implementation == "sdpa"  # the model is unchanged


@pytest.mark.parametrize("checkpointing", [False, True])
def test_eager_attention_is_the_models_own_in_updates_and_sampling(
    tiny: Policy, monkeypatch: pytest.MonkeyPatch, checkpointing: bool
) -> None:
    calls: list[str] = []

    def noted(module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        calls.append(type(module).__name__)
        return eager_attention_forward(module, *arguments, **options)

    eager = Policy.load(ModelConfig(attn_implementation="eager"), CPU)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", noted)
    layers = ["LlamaAttention"] * eager.config.num_hidden_layers
    with gradient_checkpointing(eager.causal_lm, checkpointing):
        logprobs_BT, _, _ = eager.logprobs(PROMPTS, COMPLETIONS)
        assert calls == layers
        logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]
    assert calls == layers * (1 + checkpointing)
    torch.testing.assert_close(logprobs_BT, tiny.logprobs(PROMPTS, COMPLETIONS)[0], rtol=0, atol=1e-5)
    calls.clear()
    settings = SamplingSettings(2, 4, batch_size=4)
    ours, theirs = (dict(sample(policy, PROMPTS[:2], settings, [0, 1])) for policy in (tiny, eager))
    assert len(calls) > len(layers)  # for the prompts, then for each token
    for i in (0, 1):
        assert [c.token_ids for c in theirs[i]] == [c.token_ids for c in ours[i]]
        for one, other in zip(theirs[i], ours[i], strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


TOKENS = st.integers(3, 5)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=3), st.lists(TOKENS, min_size=1)), min_size=1))
def test_a_packed_row_holds_every_distinct_prompt_once(pairs: list[tuple[list[int], list[int]]]) -> None:
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    packed = shared_prefix(prompts, completions, CPU)
    distinct = {tuple(prompt) for prompt in prompts}
    assert len(packed.token_N) == sum(map(len, distinct)) + sum(len(c) - 1 for c in completions)
    assert len(packed.before_K) == sum(map(len, completions))
    place = iter(packed.before_K.tolist())
    for prompt, completion in pairs:
        for t, before in enumerate([prompt[-1], *completion[:-1]]):
            at = next(place)
            assert int(packed.token_N[at]) == before
            assert int(packed.position_N[at]) == len(prompt) - 1 + t
