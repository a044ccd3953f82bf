"""Prompt embeddings, computed once from the initial policy and cached on disk under a hash of their inputs."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pacedrl.errors import InputError
from pacedrl.paths import expand_home
from pacedrl.policy.passes import padded_batches
from pacedrl.policy.policy import Layer, Policy, Pooling

TOKENS_PER_BATCH = 16384


def cache_folder() -> Path:
    """Return ``$PACEDRL_CACHE``, by default ``~/.cache/pacedrl``."""
    return expand_home(Path(os.environ.get("PACEDRL_CACHE") or Path.home() / ".cache" / "pacedrl"))


def prompt_embeddings(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda done: None,
    pooling: Pooling = "mean",
    layer: Layer = "last",
) -> Tensor:
    """Return the embedding of each prompt that `Policy.embed` computes: float16 [N, H] on the CPU.

    The tensor is memory-mapped from a cache file, which is written batch by batch: a million prompts of 1,536 features
    take 3 GB on disk. Do not write to it. The file's name is a hash of the model's weights, the pooling, the layer and
    the prompts' token ids. ``progress`` is called with the number of prompts in each batch.

    Raises InputError if a hidden state exceeds the range of float16, and ValueError if there are no prompts.
    """
    kind = pooling if layer == "last" else f"{pooling} {layer}"
    digest = hashlib.sha256(f"{policy.fingerprint()} {kind} ".encode())
    for ids in prompt_ids:
        digest.update(",".join(map(str, ids)).encode() + b";")
    path = cache_folder() / "embeddings" / f"{digest.hexdigest()[:32]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        file: np.memmap | None = None
        for batch in padded_batches([len(ids) for ids in prompt_ids], TOKENS_PER_BATCH):
            rows = policy.embed([prompt_ids[i] for i in batch], pooling, layer).numpy()
            largest = np.abs(rows).max()
            if largest > np.finfo(np.float16).max:
                raise InputError(f"model.name: a prompt's hidden state reaches {largest:.3g}, beyond float16")
            if file is None:
                shape = (len(prompt_ids), rows.shape[1])
                file = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            file[batch] = rows
            progress(len(batch))
        if file is None:
            raise ValueError("no prompts to embed")
        file.flush()
        partial.replace(path)
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # copy on write, because torch has no read-only tensors
