"""A simulated policy for tests of the scheduler."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pacedrl.method import DifficultyScheduler, Rollouts

BETA = 0.05


class Bandit:
    """A simulated policy whose probability of answering a prompt correctly is a smooth function of its features."""

    def __init__(self, prompts: int, features: int = 8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.keys = [f"prompt-{i}" for i in range(prompts)]
        self.features = rng.normal(size=(prompts, features))
        direction = np.random.default_rng(99).normal(size=features) / np.sqrt(features)
        self.accuracy: NDArray[np.float64] = 1 / (1 + np.exp(-3 * self.features @ direction))
        self.rng = rng

    def embeddings(self) -> torch.Tensor:
        return torch.from_numpy(self.features).float()

    def rollouts(self, keys: list[str], group_size: int = 8) -> Rollouts:
        names = [key for key in keys for _ in range(group_size)]
        p = self.accuracy[[int(name.split("-")[1]) for name in names]]
        reward = (self.rng.random(len(names)) < p).astype(float)
        return Rollouts(names, reward, 0.0, [[1, 2]] * len(names), [[-0.1, -0.2]] * len(names))


def scheduler_for(bandit: Bandit, **options: object) -> DifficultyScheduler:
    torch.manual_seed(0)
    return DifficultyScheduler(bandit.keys, bandit.embeddings(), beta=BETA, **options)  # type: ignore[arg-type]
