"""Policies on the built-in tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from pacedrl.policy.determinism import deterministic
from pacedrl.policy.policy import Policy


@pytest.fixture(autouse=True)
def same_bits(device: torch.device) -> Iterator[None]:
    """Make updates on a GPU equal bit for bit, as they are on a CPU, so that tests can compare them."""
    with deterministic(device.type == "cuda"):
        yield


@pytest.fixture
def new_policy(load_tiny: Callable[[], Policy]) -> Callable[[], Policy]:
    """Makes equal policies that the test may change."""
    return load_tiny


@pytest.fixture
def policy(new_policy: Callable[[], Policy]) -> Policy:
    return new_policy()
