"""Nested state on disk and back."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pacedrl.training.state import load_state, save_state

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]

tensors = st.builds(
    lambda shape, dtype, seed: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 50).abs().to(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
keys = st.one_of(st.text(), st.integers())
states = st.recursive(
    st.one_of(plain, tensors),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)


def round_trip(state: Any) -> Any:
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_state(folder, "part", state)
        assert {path.name for path in folder.iterdir()} == {"part.json", "part.safetensors"}
        return load_state(folder, "part")


def assert_equal(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)  # the order too
        assert [type(key) for key in left] == [type(key) for key in right]
        for key, value in left.items():
            assert_equal(value, right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        assert left == right


@settings(deadline=None)
@given(states)
def test_every_state_comes_back_as_it_was(state: Any) -> None:
    assert_equal(round_trip(state), state)


def test_values_that_are_not_finite_survive() -> None:
    found = round_trip([math.inf, -math.inf, math.nan, torch.tensor([math.nan, -math.inf])])
    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])
    assert found[3].isnan().tolist() == [True, False]


def test_keys_one_and_the_text_one_stay_apart() -> None:
    assert round_trip({1: "a", "1": "b"}) == {1: "a", "1": "b"}


def test_a_dict_that_looks_like_our_own_marks_stays_a_dict() -> None:
    state = {"tensor": "0", "dict": [["x", 1]], "inner": {"tensor": torch.ones(1)}}
    assert_equal(round_trip(state), state)


def test_tuples_come_back_as_lists() -> None:
    assert round_trip({"a": (1, (2.5, "x"))}) == {"a": [1, [2.5, "x"]]}


def test_views_that_share_memory_and_strides_are_saved_apart() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    found = round_trip([base, base.T, base[0], base.clone().requires_grad_()])
    assert_equal(found, [base, base.T.contiguous(), base[0].clone(), base.clone()])
    found[0][0, 0] = 99
    assert found[2][0] == 0


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", np.int64(1), np.ones(2), lambda: None])
def test_anything_else_is_refused_before_anything_is_written(value: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot save a"):
        save_state(tmp_path, "part", {"fine": torch.ones(1), "deep": [{"not": value}]})
    assert list(tmp_path.iterdir()) == []


def test_keys_that_would_not_come_back_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_state(tmp_path, "part", {(1, 2): "a tuple is no key of JSON"})
    assert list(tmp_path.iterdir()) == []


def test_an_optimizers_state_trains_on_from_disk(tmp_path: Path) -> None:
    def stepped(steps: int, through_disk_at: int | None) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        for step in range(steps):
            if step == through_disk_at:
                save_state(tmp_path, "optimizer", optimizer.state_dict())
                optimizer = torch.optim.AdamW([parameter], lr=9.0)
                optimizer.load_state_dict(load_state(tmp_path, "optimizer"))
            optimizer.zero_grad()
            (parameter**2 * torch.arange(3)).sum().backward()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(stepped(4, through_disk_at=2), stepped(4, through_disk_at=None))
