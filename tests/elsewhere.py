"""Tensors that claim another device, so that a machine without a GPU finds code that mixes devices.

Their values are real and lie on the CPU. FakeTensorMode has none, so it could not run code whose shapes depend on
values, and without CUDA it runs no backward pass. If PACEDRL_TEST_DEVICE names a GPU, the tensors are really there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAMED = os.environ.get("PACEDRL_TEST_DEVICE", "cpu")
ELSEWHERE = torch.device("meta" if NAMED == "cpu" else NAMED)
"""A GPU, or the device that is claimed: the only one besides the CPU that autograd accepts in every build of torch."""
CLAIMED = ELSEWHERE.type == "meta"
MOVES = ("_to_copy", "copy_")
"""Operations that take tensors of two devices."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
"""Operations on a GPU's tensors that also take indices from the CPU."""


class _Claimed(Tensor):
    """A tensor that claims to be on `ELSEWHERE`; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Claimed:
        claimed: _Claimed = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=ELSEWHERE
        )
        claimed.held = held
        return claimed

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"elsewhere: {self.held!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Within this context `ELSEWHERE` is a device with values. An operation on tensors of two devices raises
    RuntimeError, as on a GPU; scalars of the CPU (no dimensions) may take part.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}) if CLAIMED else func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Within this context lists become tensors of `ELSEWHERE` and these become lists. Use it within `Elsewhere`."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == ELSEWHERE:
            return func(*args, **(kwargs | {"device": None})).to(ELSEWHERE)
        if func is Tensor.tolist and isinstance(args[0], _Claimed):
            return args[0].held.tolist()
        return func(*args, **kwargs)


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    claimed = [tensor for tensor in tensors if isinstance(tensor, _Claimed)]
    others = [tensor for tensor in tensors if tensor.dim() > 0 and not isinstance(tensor, _Claimed)]
    if name in INDEXED and isinstance(args[0], _Claimed):
        others = []
    if claimed and others and name not in MOVES:
        raise RuntimeError(
            f"{name}: expected all tensors on one device, got shapes {[tuple(t.shape) for t in tensors]}"
        )
    to = kwargs.get("device")
    there = isinstance(args[0], _Claimed) if name == "copy_" else bool(claimed) if to is None else to == ELSEWHERE
    inner = {id(tensor.held): tensor for tensor in claimed}
    own = {
        key: torch.device("cpu") if key == "device" and value is not None else value for key, value in kwargs.items()
    }
    result = func(*tree_map(_held, tuple(args)), **tree_map(_held, own))

    def claim(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return inner[id(value)] if id(value) in inner else _Claimed(value)  # in place: the same tensor

    return tree_map(claim, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _Claimed) else value


def claim(tensor: Tensor) -> Tensor:
    """Return the tensor as one that claims to be on `ELSEWHERE`, or a copy that is there."""
    return _Claimed(tensor) if CLAIMED else tensor.to(ELSEWHERE)


def values(tensor: Tensor) -> Tensor:
    """Return the values of a tensor on `ELSEWHERE`. Raises AssertionError for any other."""
    if isinstance(tensor, _Claimed):
        return tensor.held
    assert not CLAIMED
    assert tensor.device.type == ELSEWHERE.type
    return tensor.cpu()
