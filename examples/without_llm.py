"""PACED-RL without a language model, through `pacedrl.method` alone, on a task small enough to check every claim.

A prompt is a subset-sum instance: eight weights, a target and a tolerance. A completion is eight bits, and it is correct
if the weights whose bits are 1 sum to the target within the tolerance. There are only 256 completions, so accuracy, KL
and the partition function are known exactly for every prompt, by enumeration, and what was learned is held against that.

    python examples/without_llm.py [--steps N] [--seed S]

Shapes: _N all prompts, _F features of a prompt, _P prompts of a step, _B completions of a step, _T bits, _S the 256
completions. Sections and letters in comments refer to the paper, arXiv 2602.12642.
"""

from __future__ import annotations

import argparse
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid

from pacedrl.method import (
    DifficultyScheduler,
    LogPartition,
    PartitionLearner,
    Rollouts,
    calibration_metrics,
    sequence_log_ratio,
    trajectory_balance,
    trajectory_balance_advantage,
)

BITS, LARGEST_WEIGHT = 8, 9
EVERY_ST = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * BITS)
PROMPTS, PROMPTS_PER_STEP, GROUP_SIZE, UPDATES_PER_STEP = 512, 32, 8, 2
BETA, FROZEN_BETA = 0.05, 0.5


def make_prompts(count: int, seed: int) -> Tensor:
    """[count, 10]: weights 1..9, a target that some subset reaches, a tolerance 0..12; all whole numbers."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, LARGEST_WEIGHT + 1, (count, BITS))
    # The share of bits in the target's subset varies too: sums far from the middle are rare, hence hard.
    subset = rng.random((count, BITS)) < rng.random((count, 1))
    target, tolerance = (weights * subset).sum(1), rng.integers(0, 13, count)
    return torch.from_numpy(np.column_stack([weights, target, tolerance])).float()


def reward(x_BF: Tensor, y_BT: Tensor) -> Tensor:
    """1 where the chosen weights sum to the target within the tolerance, else 0; [B]."""
    miss_B = (x_BF[:, :BITS] * y_BT).sum(1) - x_BF[:, BITS]
    return (miss_B.abs() <= x_BF[:, BITS + 1]).float()


class Policy(nn.Module):
    """An autoregressive policy: bit t is drawn given the prompt and the bits before it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(BITS + 2, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def logits(self, x_BF: Tensor, y_BT: Tensor) -> Tensor:
        """Log-odds that each bit is 1, [B, T]; bit t sees the weights still to decide on and the sum still missing."""
        weights_BT, target_B, tolerance_B = x_BF[:, :BITS], x_BF[:, BITS], x_BF[:, BITS + 1]
        chosen_BT = weights_BT * y_BT
        missing_BT = target_B[:, None] - (chosen_BT.cumsum(1) - chosen_BT)
        undecided_BTT = weights_BT[:, None, :] * torch.ones(BITS, BITS).triu()
        tolerance_BT = tolerance_B[:, None].expand_as(missing_BT)
        state_BTF = torch.cat([undecided_BTT, missing_BT[..., None], tolerance_BT[..., None]], dim=-1)
        return self.net(state_BTF / LARGEST_WEIGHT).squeeze(-1)

    def forward(self, x_BF: Tensor, y_BT: Tensor) -> Tensor:
        """Log-probability of each bit of given completions, [B, T]."""
        return logsigmoid((2 * y_BT - 1) * self.logits(x_BF, y_BT))

    @torch.no_grad()
    def sample(self, x_BF: Tensor) -> Tensor:
        y_BT = torch.zeros(len(x_BF), BITS)
        for t in range(BITS):
            y_BT[:, t] = torch.bernoulli(self.logits(x_BF, y_BT)[:, t].sigmoid())
        return y_BT

    @torch.no_grad()
    def enumerated(self, x_NF: Tensor) -> Tensor:
        """log π(y|x) of all 256 completions, float64 [N, S]."""
        parts = [self(x_F.expand(len(EVERY_ST), -1), EVERY_ST).double().sum(1) for x_F in x_NF]
        return torch.stack(parts)
