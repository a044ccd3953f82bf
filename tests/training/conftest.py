"""Policies on the built-in tiny model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy


@pytest.fixture
def new_policy() -> Callable[[], Policy]:
    """Makes equal policies that the test may change."""
    return lambda: Policy.load(ModelConfig(), torch.device("cpu"))


@pytest.fixture
def policy(new_policy: Callable[[], Policy]) -> Policy:
    return new_policy()
