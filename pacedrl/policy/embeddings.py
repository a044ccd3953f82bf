"""Prompt embeddings: computed once from the initial policy, kept on disk under a name that says what they are of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pacedrl.policy.policy import Policy, Pooling

TOKENS_PER_BATCH = 16384


def cache_folder() -> Path:
    """``$PACEDRL_CACHE``, or ``~/.cache/pacedrl``."""
    return Path(os.environ.get("PACEDRL_CACHE") or Path.home() / ".cache" / "pacedrl")


def prompt_embeddings(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    progress: Callable[[int], None] = lambda done: None,
    pooling: Pooling = "mean",
) -> Tensor:
    """Last hidden states of ``policy``, mean over each prompt or of its last token: float32 [N, H] on the CPU.

    Cached by content: the file's name hashes the model's weights, the pooling and the prompts' token ids. ``progress``
    is called with the number of prompts embedded by each batch.
    """
    digest = hashlib.sha256(f"{policy.fingerprint()} {pooling} ".encode())
    for ids in prompt_ids:
        digest.update(",".join(map(str, ids)).encode() + b";")
    path = cache_folder() / "embeddings" / f"{digest.hexdigest()[:32]}.safetensors"
    if path.exists():
        cached: Tensor = load_file(path)["embeddings"]
        return cached
    embeddings_NH = _embed_all(policy, prompt_ids, progress, pooling)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"embeddings": embeddings_NH}, partial)
    partial.replace(path)
    return embeddings_NH


def _embed_all(
    policy: Policy, prompt_ids: Sequence[Sequence[int]], progress: Callable[[int], None], pooling: Pooling
) -> Tensor:
    by_length = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    rows: list[Tensor] = []
    start = 0
    while start < len(by_length):
        end = start + 1
        while end < len(by_length) and (end - start + 1) * len(prompt_ids[by_length[end]]) <= TOKENS_PER_BATCH:
            end += 1
        rows.append(policy.embed([prompt_ids[i] for i in by_length[start:end]], pooling))
        progress(end - start)
        start = end
    sorted_NH = torch.cat(rows)
    embeddings_NH = torch.empty_like(sorted_NH)
    embeddings_NH[by_length] = sorted_NH
    return embeddings_NH
