"""Decoding as on a GPU: in bfloat16, with rounded columns, and on a GPU that does not exist, for its costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from fake_cuda import Launches, fake_cuda, on_fake_cuda
from torch import Tensor
from transformers import PretrainedConfig, Qwen2Config

from pacedrl.config import LoraConfig, ModelConfig
from pacedrl.policy import cache, sampler, shared_prompts
from pacedrl.policy.half import half_weights
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample
from pacedrl.types import Completion

IDS = list[list[int]]
SETTINGS = SamplingSettings(4, 12, batch_size=8)
GROUPED = Qwen2Config(
    vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
)  # fmt: skip
LAUNCHES = {"all rows": 320, "some rows": 352}
"""Operations of a decoding step of the tiny model, of 4 layers, which may not rise: the model's own, those of attention
and of drawing tokens. Where some rows of a group have left, the rest are put in their places for the multiplications
with their prompt."""


def drawn(policy: Policy, prompts: IDS, settings: SamplingSettings = SETTINGS) -> list[Completion]:
    found = dict(sample(policy, prompts, settings, range(len(prompts))))
    return [completion for i in range(len(prompts)) for completion in found[i]]


def outcome(completions: list[Completion]) -> list[tuple[list[int], list[float]]]:
    return [(completion.token_ids, completion.logprobs) for completion in completions]


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(lora=LoraConfig(r=4))], ids=["all", "adapter"])
def test_copies_of_the_weights_change_nothing(
    config: ModelConfig, prompts: IDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    if config.lora is not None:
        pytest.importorskip("peft")
    policy = Policy.load(config, torch.device("cpu"))
    policy.mixed_precision = True
    with torch.no_grad():
        for parameter in policy.parameters():  # a fresh adapter would be zero
            parameter += 0.01
    with_copies = outcome(drawn(policy, prompts))
    monkeypatch.setattr(sampler, "half_weights", lambda model: nullcontext())
    assert outcome(drawn(policy, prompts)) == with_copies


def test_copies_are_of_linear_layers_and_leave_with_the_context(random_policy: Callable[..., Policy]) -> None:
    policy = random_policy(GROUPED)
    model, before = policy.causal_lm, policy.fingerprint()
    with half_weights(model):
        projection = model.model.layers[1].self_attn.q_proj
        assert projection.weight.dtype == projection.bias.dtype == model.lm_head.weight.dtype == torch.bfloat16
        assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight.bfloat16())  # tied
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
        assert {weight.dtype for _, weight in policy.weights()} == {torch.float32}
        assert model.model.embed_tokens.weight.dtype == model.model.norm.weight.dtype == torch.float32
        assert policy.fingerprint() == before
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not any({"weight", "bias"} & set(vars(module)) for module in model.modules())


@pytest.mark.parametrize("shared", [True, False])
def test_bfloat16_samples_are_of_the_bfloat16_policy(policy: Policy, prompts: IDS, shared: bool) -> None:
    """The difference is that of bfloat16's rounding, whether rows share their prompt or copy it."""
    policy.mixed_precision, policy.shares_prompts = True, shared
    completions = drawn(policy, prompts, SamplingSettings(8, 12, batch_size=16))
    repeated = [prompt for prompt in prompts for _ in range(8)]
    differences = []
    for prompt, completion in zip(repeated, completions, strict=True):
        with torch.no_grad(), policy.autocast():
            logits_LV = policy.causal_lm(input_ids=torch.tensor([[*prompt, *completion.token_ids]])).logits[0].float()
        logprob_LV = torch.log_softmax(logits_LV[len(prompt) - 1 : -1], dim=-1)
        expected_T = logprob_LV[range(len(completion.token_ids)), completion.token_ids]
        differences.append((torch.tensor(completion.logprobs) - expected_T).abs())
    assert 0.0 < float(torch.cat(differences).mean()) < 0.01


def test_scores_are_not_rounded_before_the_softmax() -> None:
    """With keys of bfloat16, attention equals that of the same numbers in float32."""
    generator = torch.Generator().manual_seed(1)
    keys, values, own_keys, own_values = (
        torch.randn(2, 2, length, 16, generator=generator).bfloat16() for length in (40, 40, 3, 3)
    )
    query = 4 * torch.randn(2, 6, 1, 16, generator=generator).bfloat16().float()
    prompts = shared_prompts.PromptCache(2, 40, torch.device("cpu"))
    prompts.insert([(keys, values)], [40, 40])
    pattern = prompts.pattern([0, 1], torch.ones(2, 3, dtype=torch.bool))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pattern.attend(query, own_keys, own_values, 0.25, 0)
    all_keys, all_values = torch.cat([keys, own_keys], 2).float(), torch.cat([values, own_values], 2).float()
    scores = 0.25 * query.view(2, 2, 3, 16) @ all_keys.transpose(2, 3)
    exact = (scores.softmax(dim=-1) @ all_values).view(2, 6, 1, 16)
    rounded = (scores.bfloat16().softmax(dim=-1).float() @ all_values).view(2, 6, 1, 16)
    assert float((output - exact).abs().mean()) < 0.3 * float((rounded - exact).abs().mean())


@pytest.mark.parametrize("shared", [True, False])
def test_rounded_columns_are_masked(
    random_policy: Callable[[PretrainedConfig], Policy], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Rows leave, others take their places among old tokens, which may be infinite, and the columns are moved."""
    monkeypatch.setattr(sampler, "COLUMNS_AHEAD", 8)
    policy = random_policy(GROUPED)
    policy.eos_ids, policy.shares_prompts = sorted(range(0, 259, 4)), shared
    prompts = [[1, 9, 8, 7], [1, 5], [1, 30, 31, 32, 33, 34, 35], [1, 60, 61], [1, 5, 5, 5, 5, 5], [1, 70], [1, 80, 9]]
    settings = SamplingSettings(3, 40, temperature=4.0, batch_size=9)
    exact = drawn(policy, prompts, settings)
    widths = set()

    def note(own: cache.ColumnCache) -> Tensor:
        widths.add(own.columns.stop - own.columns.start)
        return token_mask(own)

    def spoil(own: cache.ColumnCache, gone: list[int]) -> tuple[list[int], list[int]]:
        moves = remove(own, gone)
        for layer in own.cache.layers:
            for buffer in (layer.keys, layer.values):
                buffer[own.rows :] = torch.inf
        return moves

    token_mask, remove = cache.ColumnCache.token_mask, cache.ColumnCache.remove
    monkeypatch.setattr(cache.ColumnCache, "token_mask", note)
    monkeypatch.setattr(cache.ColumnCache, "remove", spoil)
    for module in (cache, shared_prompts):
        monkeypatch.setattr(module, "column_step", lambda device: 16)
    rounded = drawn(policy, prompts, settings)
    assert [c.token_ids for c in rounded] == [c.token_ids for c in exact]
    for one, other in zip(rounded, exact, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=3e-5)
    assert widths >= {16, 32}
    assert {width % 16 for width in widths} == {0}


def _decoder(policy: Policy, prompts: IDS, settings: SamplingSettings) -> Any:
    return sampler._Decoder(policy, prompts, settings, range(len(prompts)), lambda: None)


def _advance(decoder: Any) -> Launches:
    """Advance without inference mode, in which operations are not split into those that a GPU is given."""
    with torch.no_grad(), Launches() as counted:
        type(decoder).advance.__wrapped__(decoder)
    return counted


def _read_nothing(token_B: Tensor, logprob_B: Tensor) -> tuple[list[int], list[float]]:
    """Stand in for `read_back`, because tensors on a GPU that does not exist hold no numbers."""
    assert token_B.device.type == logprob_B.device.type == "cuda"
    return [5] * len(token_B), [0.0] * len(logprob_B)


@pytest.mark.parametrize("shared", [True, False])
def test_no_step_mixes_devices(
    random_policy: Callable[[PretrainedConfig], Policy], monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Prompts join, rows leave, and the cache grows; torch raises an error where tensors are on two devices."""
    monkeypatch.setattr(sampler, "read_back", _read_nothing)
    monkeypatch.setattr(sampler, "COLUMNS_AHEAD", 8)
    for module in (cache, shared_prompts):
        monkeypatch.setattr(module, "column_step", lambda device: 8)
    policy = random_policy(GROUPED)
    policy.shares_prompts = shared
    with fake_cuda():
        fake = on_fake_cuda(policy)
        with half_weights(fake.causal_lm):
            decoder = _decoder(fake, [[1, 5, 6], [1, 7], [1, 8, 9, 10]], SamplingSettings(4, 18, batch_size=8))
            capacity = decoder.cache.column_capacity
            decoder.advance()
            decoder.advance()
            decoder._remove([1, 3, 6])
            steps = 0
            while decoder.rows or decoder.waiting:
                decoder.advance()
                steps += 1
            keys = decoder.cache.cache.layers[0].keys
    assert decoder.cache.column_capacity > capacity
    assert (keys.device.type, keys.dtype) == ("cuda", torch.bfloat16)
    assert steps >= 18 + 16


def test_a_token_costs_no_more_than_these_operations(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "read_back", _read_nothing)
    with fake_cuda():
        fake = on_fake_cuda(policy)
        with half_weights(fake.causal_lm):
            decoder = _decoder(fake, [[1, 5, 6], [1, 7]], SamplingSettings(4, 64, batch_size=8))
            begun = _advance(decoder)
            first, usual = _advance(decoder), _advance(decoder)
            decoder._remove([1])
            changed = _advance(decoder)
    layers = policy.config.num_hidden_layers
    assert first.waits.total() == usual.waits.total() == changed.waits.total() == 0  # all but reading the tokens
    assert begun.waits.total() == 2 * layers  # transformers' cache begins with an empty tensor for keys and for values
    assert usual.launches["bmm.dtype"] == 4 * layers  # scores and sums, with the prompt's tokens and with the row's own
    assert usual.launches["bmm"] == 0  # each layer multiplies all rows as one matrix
    assert usual.launches["mm"] + usual.launches["mm.dtype"] == 7 * layers + 1
    assert usual.launches.total() <= LAUNCHES["all rows"]
    assert changed.launches.total() <= LAUNCHES["some rows"]


def test_the_host_waits_once_to_read_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """`read_back` copies both lists at once, and the tokens and log-probabilities are those that were drawn."""
    calls = []

    def tolist(tensor: Tensor) -> Any:
        calls.append(tuple(tensor.shape))
        return usual(tensor)

    usual = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", tolist)
    logprob_B = torch.tensor([-0.1, -17.25, float("nan")])
    tokens, logprobs = sampler.read_back(torch.tensor([0, 2**31 + 1, 151_935]), logprob_B)
    assert calls == [(2, 3)]
    assert tokens == [0, 2**31 + 1, 151_935]
    assert logprobs == pytest.approx(usual(logprob_B), rel=0, abs=0, nan_ok=True)


def test_counting_sees_what_waits() -> None:
    """The counts above would rise for each of these."""
    with fake_cuda(), Launches() as counted:
        one = torch.tensor([1, 2], device="cuda:0")
        counted.launches.clear()
        _ = one + one
        one.to("cpu")
        torch.tensor([1, 2]).to("cuda:0", non_blocking=True)
        with pytest.raises(Exception, match="_local_scalar_dense"):
            one.tolist()
    assert counted.waits.total() == 3
    assert counted.launches["add.Tensor"] == 1
