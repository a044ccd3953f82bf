"""Making torch faster on a CPU: packed weights for the matrix multiplications of sampling, and freed memory kept."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

PACKED_ELEMENTS = 2**16
"""Smaller weights fit into the processor's caches, where packing gains nothing."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of ``mallopt`` in glibc's malloc.h."""
MUCH_FREED = 2**29
"""Bytes. It is not worth returning less, because getting it back takes longer than a tiny model's step."""


class _MallocInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h. ``fordblks`` is the number of free bytes."""

    _fields_ = (
        ("other_counts", ctypes.c_size_t * 8),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


@contextmanager
def packed_weights(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Let linear layers multiply by copies of their weights in oneDNN's own layout while the context lasts.

    This helps with few ``rows`` (tokens) at a time, where rearranging the weights at every call, as torch does, costs
    as much as multiplying by them. The weights must not change meanwhile, and gradients do not flow. It does nothing on
    a GPU or where torch lacks oneDNN. The layout is the one that torch's own compiler uses; torch has no public name
    for it.
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
    """Whether this build of torch can multiply by packed weights, tried on a small matrix."""
    weight, hidden = torch.eye(4), torch.arange(8.0).view(2, 4)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        return torch.equal(_linear(packed, None, hidden), hidden)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


@cache
def keep_freed_memory() -> None:
    """Make this process keep the memory it frees for its next tensors.

    On a CPU a training step frees and allocates gigabytes, and the kernel clears each new page, which takes ten times
    as long as using it; on a GPU there is little of either. Fragmentation costs a few percent of memory. Only glibc is
    supported; elsewhere this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Return free memory to the kernel between two phases of a step if there is much of it.

    The memory that `keep_freed_memory` keeps fits the phase that freed it, so other processes can use it while this one
    samples. The peak, which is reached within an update, does not change. Needs glibc 2.33; elsewhere this does
    nothing.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallinfo2"):
        libc.mallinfo2.restype = _MallocInfo
        if libc.mallinfo2().fordblks >= MUCH_FREED:
            libc.malloc_trim(0)
