"""The device of the policies that tests make: the CPU, or the one that the environment variable names."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from pacedrl.config import ModelConfig
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy


@pytest.fixture(scope="session")
def device() -> torch.device:
    return resolve_device(os.environ.get("PACEDRL_TEST_DEVICE", "cpu"))


@pytest.fixture(scope="session")
def load_tiny(device: torch.device) -> Callable[[], Policy]:
    """Loads the built-in tiny model. It computes in float32 on a GPU too, which the tests' tolerances need."""

    def load() -> Policy:
        policy = Policy.load(ModelConfig(), device)
        policy.mixed_precision = False
        return policy

    return load
