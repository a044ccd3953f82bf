"""The estimate of memory, against what passes of the models that users train hold."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
from fake_passes import Attention, counted_bytes
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from pacedrl.config import parse_config
from pacedrl.policy.memory import largest_pass, layer_bytes, update_bytes
from pacedrl.policy.passes import Pass


def qwen(width: int, gated: int, layers: int, heads: int, shared_heads: int, tied: bool) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151936 if tied else 152064,
        hidden_size=width,
        intermediate_size=gated,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared_heads,
        tie_word_embeddings=tied,
    )


SHAPES = {
    "Qwen2.5 0.5B": qwen(896, 4864, 24, 14, 2, True),
    "Qwen2.5 1.5B": qwen(1536, 8960, 28, 12, 2, True),
    "Qwen2.5 7B": qwen(3584, 18944, 28, 28, 4, False),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}
MIXES = {
    "full length": (1024, [3072] * 4),
    "short": (64, [512] * 28),
    "one long": (256, [4096, *[64] * 8]),
}
"""Lengths of a prompt and of its completions, about as many as a pass of 16,384 tokens may have."""


ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
CASES: list[tuple[str, str, bool, Attention]] = [
    *((name, "full length", checkpointed, "padded") for name in SHAPES for checkpointed in (False, True)),
    *((name, "full length", True, "flex") for name in SHAPES),
    ("Qwen2.5 0.5B", "full length", True, "eager"),
    ("Qwen2.5 1.5B", "short", True, "padded"),
    *(("Qwen2.5 1.5B", "one long", False, kind) for kind in ATTENTIONS),
]


def assert_estimated(
    config: PretrainedConfig,
    mix: str,
    checkpointed: bool,
    monkeypatch: pytest.MonkeyPatch,
    kind: Attention,
    with_states: bool,
) -> None:
    """Compare the gradients and the rest of the update, or all with weights and moments, whose bytes are certain."""
    prompt, completions = MIXES[mix]
    policy, peak = counted_bytes(config, prompt, completions, checkpointed, monkeypatch, kind)
    one_pass = Pass()
    for i, length in enumerate(completions):
        if kind == "eager":
            one_pass = one_pass.with_sequence(0, prompt + max(completions), new_prompt=True)
        else:
            one_pass = one_pass.with_sequence(prompt, length, new_prompt=i == 0)
    weights = sum(parameter.numel() for parameter in policy.parameters())
    counted = peak + 12 * weights * with_states
    estimated = (16 if with_states else 4) * weights + update_bytes(policy, one_pass, checkpointed)
    assert estimated == pytest.approx(counted, rel=0.2)


@pytest.mark.parametrize(("name", "mix", "checkpointed", "kind"), CASES)
def test_the_estimate_is_what_passes_hold(
    name: str, mix: str, checkpointed: bool, kind: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With five layers, each of the full size."""
    config = copy.deepcopy(SHAPES[name])
    config.num_hidden_layers, config.layer_types = 5, ["full_attention"] * 5
    assert_estimated(config, mix, checkpointed, monkeypatch, kind, with_states=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTENTIONS)
@pytest.mark.parametrize("checkpointed", [True, False], ids=["checkpointing", "plain"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_what_passes_of_whole_models_hold(
    name: str, mix: str, checkpointed: bool, kind: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_estimated(SHAPES[name], mix, checkpointed, monkeypatch, kind, with_states=True)


def test_attention_that_shares_no_prompts_has_whole_sequences_as_rows() -> None:
    sampling = {"max_prompt_tokens": 100, "max_new_tokens": 400, "group_size": 8, "prompts_per_step": 4}
    config = parse_config({"sampling": sampling, "optimizer": {"tokens_per_micro_batch": 2999}})
    assert largest_pass(config, shared_prompts=False, padded=True) == Pass(2500, rows=5, queries=500, keys=500)
    assert largest_pass(config, shared_prompts=True, padded=False) == Pass(2900, rows=7, queries=400, keys=500)


def test_the_cost_of_a_pass_follows_its_memory() -> None:
    """Passes of equal cost save nearly as much, whether completions are long, short, or of very different lengths."""
    config = SHAPES["Qwen2.5 1.5B"]
    per_unit = []
    for prompt, completions in ((1024, [3072] * 4), (1024, [16] * 150), (64, [512] * 28), (256, [8192, *[64] * 16])):
        one_pass = Pass()
        for i, length in enumerate(completions):
            one_pass = one_pass.with_sequence(prompt, length, new_prompt=i == 0)
        per_unit.append(layer_bytes(config, one_pass, half=True, padded=True) / one_pass.cost(padded=True))
        tokens_alone = layer_bytes(config, one_pass, half=True, padded=False) / one_pass.cost(padded=False)
        assert tokens_alone == pytest.approx(per_unit[0], rel=0.15)
    assert max(per_unit) < 1.2 * min(per_unit)
