"""Updates that give the same bits each time on a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def reserve_workspace() -> None:
    """Let cuBLAS work in a fixed workspace, without which its sums may differ. Call it before the GPU is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Use torch's deterministic algorithms while the context lasts, in all threads of this process.

    What an update computes on a GPU then has them, as torch's documentation lists: ``index_add``, ``scatter_add_``, the
    gradients of ``index_select``, ``gather`` and ``repeat_interleave``, and the backward passes of flash and
    memory-efficient attention. Sampling cannot run in this context, because torch raises RuntimeError for ``cumsum``.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled:
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
