"""Prompt embeddings and their cache on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_model
from transformers import LlamaConfig, PretrainedConfig

from pacedrl.errors import InputError
from pacedrl.policy import embeddings
from pacedrl.policy.embeddings import cache_folder, prompt_embeddings
from pacedrl.policy.policy import Policy

IDS = list[list[int]]


def assert_half(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert equality up to the precision of float16."""
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-3, atol=1e-5)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def forbid_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(Policy, "embed", embed)


def test_rows_are_in_the_order_of_the_prompts_however_they_are_batched(
    tiny: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch.cat([tiny.embed([ids]) for ids in prompts])
    monkeypatch.setattr(embeddings, "TOKENS_PER_BATCH", 25)
    done: list[int] = []
    batches: list[list[list[int]]] = []
    real = Policy.embed
    monkeypatch.setattr(Policy, "embed", lambda self, ids, *kind: batches.append(list(ids)) or real(self, ids, *kind))
    found = prompt_embeddings(tiny, prompts, done.append)
    assert_half(found, expected)
    assert done == [len(batch) for batch in batches]
    assert sum(done) == len(prompts)
    assert max(done) > 1
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 25 for batch in batches)


def test_the_second_time_they_come_from_disk_bit_for_bit(
    tiny: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    first = prompt_embeddings(tiny, prompts)
    assert len(list(cache.iterdir())) == 1
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    forbid_the_model(monkeypatch)
    done: list[int] = []
    assert torch.equal(prompt_embeddings(tiny, prompts, done.append), first)
    assert done == []
    with pytest.raises(AssertionError, match="the model ran"):
        prompt_embeddings(tiny, prompts[:-1])


def test_other_prompts_orders_or_weights_have_a_file_of_their_own(policy: Policy, prompts: IDS, cache: Path) -> None:
    first = prompt_embeddings(policy, prompts)
    backwards = prompt_embeddings(policy, prompts[::-1])
    assert_half(backwards, first.flip(0))
    assert not torch.equal(backwards, first)
    joined = [prompts[0] + prompts[1], *prompts[2:]]
    assert prompt_embeddings(policy, joined).shape == (4, 64)
    assert len(list(cache.iterdir())) == 3
    with torch.no_grad():
        policy.model.model.norm.weight *= 2
    assert_half(prompt_embeddings(policy, prompts), 2 * first)
    assert len(list(cache.iterdir())) == 4
    last = prompt_embeddings(policy, prompts, pooling="last")
    assert_half(last, policy.embed(prompts, "last"))
    assert not torch.allclose(last, 2 * first, atol=1e-3)
    assert len(list(cache.iterdir())) == 5
    middle = prompt_embeddings(policy, prompts, layer="middle")
    assert_half(middle, policy.embed(prompts, layer="middle"))
    assert not torch.allclose(middle, 2 * first, atol=1e-3)
    assert len(list(cache.iterdir())) == 6
    both = prompt_embeddings(policy, prompts, pooling="last", layer="middle")
    assert_half(both, policy.embed(prompts, "last", "middle"))
    assert len(list(cache.iterdir())) == 7


def test_last_layers_keep_the_file_that_earlier_versions_wrote(tiny: Policy, cache: Path) -> None:
    prompt_embeddings(tiny, [[1, 2], [3]])
    name = hashlib.sha256(f"{tiny.fingerprint()} mean 1,2;3;".encode()).hexdigest()[:32]
    assert [path.stem for path in cache.iterdir()] == [name]


def test_token_ids_that_read_alike_end_to_end_are_not_mistaken_for_each_other(tiny: Policy) -> None:
    for ids in ([[1, 2], [34]], [[1, 23], [4]], [[1, 2, 3], [4]]):
        assert_half(prompt_embeddings(tiny, ids), tiny.embed(ids))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_the_middle_layer_is_the_one_after_half_of_them(
    random_policy: Callable[[PretrainedConfig], Policy], layers: int, padded: bool
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    policy = random_policy(LlamaConfig(vocab_size=259, num_hidden_layers=layers, **sizes))
    state_1LH = policy.decoder.embed_tokens(torch.tensor([[5, 6, 7]]))
    turns = policy.decoder.rotary_emb(state_1LH, torch.arange(3)[None])
    causal_11LL = torch.full((3, 3), -torch.inf).triu(1)[None, None]
    with torch.no_grad():
        for layer in policy.decoder.layers[: math.ceil(layers / 2)]:
            state_1LH = layer(state_1LH, attention_mask=causal_11LL, position_embeddings=turns)
        expected_LH = policy.decoder.norm(state_1LH)[0] if layers == 1 else state_1LH[0]
    prompts = [[5, 6, 7], [1, 2, 3, 4, 5]] if padded else [[5, 6, 7]]
    torch.testing.assert_close(policy.embed(prompts, "mean", "middle")[0], expected_LH.mean(dim=0))
    torch.testing.assert_close(policy.embed(prompts, "last", "middle")[0], expected_LH[-1])


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "qwen3_moe", "mamba", "lfm2", "bart"])
def test_middle_states_are_those_of_transformers_whatever_the_architecture(tiny: Policy, model_type: str) -> None:
    policy = Policy(tiny_model(model_type), tiny.tokenizer, torch.device("cpu"))
    prompts = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]
    found_PH = policy.embed(prompts, layer="middle")
    for ids, found_H in zip(prompts, found_PH, strict=True):
        with torch.no_grad():
            output = policy.causal_lm(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        states = output.get("hidden_states", output.get("decoder_hidden_states"))
        middle_LH = states[math.ceil(policy.config.num_hidden_layers / 2)][0]
        torch.testing.assert_close(found_H, middle_LH.mean(dim=0), rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found_H, states[-1][0].mean(dim=0), atol=1e-2)


@pytest.mark.parametrize(("model_type", "streams_first"), [("deepseek_v4", False), ("gemma3n_text", True)])
def test_parallel_streams_stand_side_by_side(tiny: Policy, model_type: str, streams_first: bool) -> None:
    policy = Policy(tiny_model(model_type), tiny.tokenizer, torch.device("cpu"))
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        state = policy.decoder(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1]
    streams_SLH = state[:, 0] if streams_first else state[0].movedim(1, 0)
    expected_H = torch.cat([stream_LH.mean(dim=0) for stream_LH in streams_SLH])
    assert expected_H.shape == (4 * 64,)
    torch.testing.assert_close(policy.embed(ids.tolist(), layer="middle")[0], expected_H)
    assert prompt_embeddings(policy, ids.tolist(), layer="middle").shape == (1, 256)


def test_a_model_that_hides_its_layers_is_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = policy.decoder.forward
    monkeypatch.setattr(policy.decoder, "forward", lambda *_, output_hidden_states, **options: real(**options))
    with pytest.raises(InputError, match="LlamaForCausalLM returns no hidden states of its layers"):
        policy.embed([[1, 2]], layer="middle")


def test_embedding_no_prompts_is_an_error(tiny: Policy) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        prompt_embeddings(tiny, [])


def test_a_write_that_fails_leaves_nothing_that_would_be_read(
    tiny: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Policy.embed, []

    def cut_short(self: Policy, ids: IDS, *kind: Any) -> torch.Tensor:
        calls.append(ids)
        if len(calls) > 1:
            raise OSError("disk full")
        return real(self, ids)

    with monkeypatch.context() as patched:
        patched.setattr(embeddings, "TOKENS_PER_BATCH", 25)
        patched.setattr(Policy, "embed", cut_short)
        with pytest.raises(OSError, match="disk full"):
            prompt_embeddings(tiny, prompts)
    assert_half(prompt_embeddings(tiny, prompts), tiny.embed(prompts))


def test_what_float16_cannot_hold_is_refused(tiny: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "embed", lambda self, ids, *kind: torch.full((len(ids), 4), -7e4))
    with pytest.raises(InputError, match=r"hidden state reaches 7e\+04, beyond float16"):
        prompt_embeddings(tiny, prompts)


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pacedrl"
