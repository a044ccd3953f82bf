"""Prompt embeddings and their cache on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

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
    monkeypatch.setattr(Policy, "embed", lambda self, ids, pooling: batches.append(list(ids)) or real(self, ids))
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


def test_token_ids_that_read_alike_end_to_end_are_not_mistaken_for_each_other(tiny: Policy) -> None:
    for ids in ([[1, 2], [34]], [[1, 23], [4]], [[1, 2, 3], [4]]):
        assert_half(prompt_embeddings(tiny, ids), tiny.embed(ids))


def test_a_write_that_fails_leaves_nothing_that_would_be_read(
    tiny: Policy, prompts: IDS, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Policy.embed, []

    def cut_short(self: Policy, ids: IDS, pooling: str) -> torch.Tensor:
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
    monkeypatch.setattr(Policy, "embed", lambda self, ids, pooling: torch.full((len(ids), 4), -7e4))
    with pytest.raises(InputError, match=r"hidden state reaches 7e\+04, beyond float16"):
        prompt_embeddings(tiny, prompts)


def test_the_cache_is_in_the_home_folder_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pacedrl"
