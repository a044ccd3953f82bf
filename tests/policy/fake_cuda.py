"""Policies whose tensors claim to be on cuda:0, on a machine without one, to find mixed devices and count operations.

torch's FakeTensorMode computes shapes, types and devices alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pacedrl.policy.policy import Policy

CUDA = torch.device("cuda:0")


GUARDED = {
    Tensor.contiguous: torch.ops.aten.contiguous,
    Tensor.copy_: torch.ops.aten.copy_,
    Tensor.__invert__: torch.ops.aten.bitwise_not,
}
"""Methods that first choose the GPU of their tensor, and the operations that they then call."""


class _WithoutGpu(TorchFunctionMode):
    """Does what torch cannot do with fake tensors in a build for CPUs: index them, and copy constants to the GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            view, indices = _view(*args)
            return torch.ops.aten.index.Tensor(view, indices) if indices else view
        if func is Tensor.__setitem__:
            view, indices = _view(*args[:2])
            value = args[2] if isinstance(args[2], Tensor) else view.new_full((), args[2])
            return torch.ops.aten.index_put_(view, indices, value) if indices else torch.ops.aten.copy_(view, value)
        kwargs = kwargs or {}
        if func in GUARDED:
            return GUARDED[func](*args, **kwargs)
        if func is torch.tensor:
            device = kwargs.pop("device", "cpu")
            tensor = torch.tensor(*args, **kwargs)  # a mode is off in its own code
            tensor.constant = None
            return tensor.to(device)
        return func(*args, **kwargs)


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Apply all of an index but its tensors; these are returned, with None for the dimensions before them."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (tensor.ndim - sum(part is not None for part in parts) + 1)
    indices: list[Tensor | None] = []
    dimension = 0
    for part in parts:
        if part is None:
            tensor = tensor.unsqueeze(dimension)
        elif isinstance(part, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dimension, part.start, part.stop, part.step or 1)
        elif not isinstance(part, Tensor):
            tensor = tensor.select(dimension, part)
            continue
        indices.append(part if isinstance(part, Tensor) else None)
        dimension += 1
    return tensor, indices if any(part is not None for part in indices) else []


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Let new tensors be fake, and tensors on CUDA compute under bfloat16 autocast, while the context lasts."""
    usual = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)  # torch.autocast refuses without a GPU
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), _WithoutGpu():
            yield
    finally:
        torch.set_autocast_enabled("cuda", usual[0])
        torch.set_autocast_dtype("cuda", usual[1])


def on_fake_cuda(policy: Policy) -> Policy:
    """Return a copy of the policy on a GPU that does not exist. Call it, and use the copy, within `fake_cuda`."""
    model = policy.model
    memo: dict[int, Any] = {id(tensor): _claim(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    copy = deepcopy(policy, memo)
    copy.device, copy.mixed_precision = CUDA, True
    copy.autocast = nullcontext  # type: ignore[method-assign,assignment]
    return copy


def _claim(tensor: Tensor) -> Tensor:
    claimed = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(claimed, requires_grad=tensor.requires_grad)
    return claimed


WITHOUT_LAUNCH = ("prim::device", "view", "_unsafe_view", "slice", "select", "expand", "transpose", "unsqueeze",
                  "squeeze", "t", "detach", "permute", "alias", "split", "unbind", "lift_fresh")  # fmt: skip
"""Operations that only describe a tensor anew."""


class Launches(TorchDispatchMode):
    """Counts operations that a GPU would be given, and those for which the host would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.name().removeprefix("aten::"), kwargs or {}
        kind = name.split(".")[0]
        if kind in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2"):
            self.waits[name] += 1
        output = func(*args, **kwargs)
        devices = {tensor.device.type for tensor in (*args, output) if isinstance(tensor, Tensor)}
        if "cuda" in devices and kind not in WITHOUT_LAUNCH:
            self.launches[name] += 1
        blocking = not (kwargs.get("non_blocking") or (kind == "copy_" and args[2:] == (True,)))
        if kind in ("_to_copy", "copy_") and devices == {"cpu", "cuda"} and blocking:
            self.waits[name] += 1
        return output
