"""Shared parts of the golden tests. It imports little, because verifier processes import this file for the reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def share_right(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    """Return the share of positions at which completion and answer agree, with TRL's signature, which is also ours."""
    rewards = []
    for text, gold in zip(completions, answer, strict=True):
        agreeing = sum(mine == right for mine, right in zip(text.strip(), gold, strict=False))
        rewards.append(agreeing / max(len(text.strip()), len(gold)))
    return rewards


@pytest.fixture
def reward() -> Callable[..., list[float]]:
    return share_right
