"""What makes torch faster on a CPU: weights packed for the matrix multiplications of sampling, and memory kept."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

PACKED_ELEMENTS = 2**16
"""Smaller weights stay in the caches of the processor: packing gains nothing."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of ``mallopt`` in glibc's malloc.h."""
MUCH_FREED = 2**29
"""Less is not worth the time that taking it again costs: a step of a tiny model is over in the meantime."""


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h; ``fordblks`` is what is free, in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    )


@contextmanager
def packed_weights(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Have linear layers multiply by copies of their weights in oneDNN's own layout, for as long as the context lasts.

    For ``rows`` tokens at a time, few enough that rearranging the weights at every call, as torch does, costs as much
    as multiplying by them. The weights must not change meanwhile. Without gradient. Does nothing on a GPU, or where
    torch lacks oneDNN. The layout is the one that torch's own compiler uses; there is no public name for it.
    """
    packed = []
    if can_pack():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and _worthwhile(module.weight):
                reordered = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), rows)
                module.forward = partial(_linear, reordered, module.bias)  # type: ignore[method-assign]
                packed.append(module)
    try:
        yield
    finally:
        for module in packed:
            del module.forward


def _worthwhile(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= PACKED_ELEMENTS


def _linear(packed: Any, bias: Tensor | None, hidden: Tensor) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], "")
    return output


@cache
def can_pack() -> bool:
    """Whether this build of torch multiplies by packed weights, tried on a small one."""
    weight, hidden = torch.eye(4), torch.arange(8.0).view(2, 4)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        return torch.equal(_linear(packed, None, hidden), hidden)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


@cache
def keep_freed_memory() -> None:
    """Have this process keep the memory it frees for its next tensors: fresh memory costs ten times what using it does.

    On a CPU a training step frees and asks for gigabytes, and the kernel clears each page before it hands it out; on a
    GPU there is little of either. For glibc; elsewhere this does nothing. Costs some percent more memory, to
    fragmentation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the kernel back what is free between two phases of a step, where that is much.

    What `keep_freed_memory` keeps fits the phase that freed it. It is then there for others while this process samples;
    the peak, which lies within an update, stays what it is. For glibc 2.33 or later; elsewhere this does nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _MallocInfo
        if libc.mallinfo2().fordblks >= MUCH_FREED:
            libc.malloc_trim(0)
