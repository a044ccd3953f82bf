"""The interface between a training step and its objective."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pacedrl.config import Config
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import group_relative_advantage
from pacedrl.method.objectives import Metrics
from pacedrl.types import Completion

Settings = TypeVar("Settings")
"""The objective's section of the configuration."""


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch, as the losses of `pacedrl.method.objectives` take it; only ``logprobs_BT`` carries gradient.

    ``anchor_logprobs_BT`` are those of μ, ``sampler_logprobs_BT`` those of the sampler. ``reference_logprobs_BT`` is
    None if the objective reads none. The whole batch of the optimiser step has ``batch_sequences`` sequences and
    ``batch_tokens`` completion tokens.
    """

    logprobs_BT: Tensor
    anchor_logprobs_BT: Tensor
    mask_BT: Tensor
    advantage_B: Tensor
    sampler_logprobs_BT: Tensor
    batch_sequences: int
    batch_tokens: int
    reference_logprobs_BT: Tensor | None = None


class Objective(ABC, Generic[Settings]):
    """Turns rewards into advantages and a loss, and says what log Z is fitted to.

    Its section of the configuration (`pacedrl.config.method.ObjectiveSection`) says which parts of a run it needs (log
    Z, the initial policy, replay).
    """

    anchored_to_trainer: bool = False
    """Whether μ of fresh completions is the trainer's policy at the start of the step, not the sampler's."""

    def __init__(self, settings: Settings, config: Config) -> None:
        self.settings = settings
        self.config = config
        self.beta: float = getattr(settings, "beta", math.nan)
        """β, the temperature of the objective; NaN if it has none."""

    @abstractmethod
    def advantages(self, fresh: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        """One advantage per judged completion, float32 [B]; completions of one group are adjacent."""

    def replayed_advantages(self, replayed: Sequence[Completion], scheduler: Scheduler) -> Tensor:
        """One advantage per replayed completion, float32 [B]; such completions have no group."""
        raise NotImplementedError(f"{type(self).__name__} cannot replay; ObjectiveSection.can_replay should be False")

    @abstractmethod
    def loss(self, inputs: LossInputs) -> tuple[Tensor, Metrics]:
        """The micro-batch's share of the batch's loss and metrics: they add up over the micro-batches of a batch."""

    def partition_targets(self, sampled: Sequence[Completion]) -> tuple[list[float], list[float] | None]:
        """The log-ratio and the reward that log Z is fitted to, for each completion of the step.

        The rewards are None for the raw ones. By default the log-ratio is 0: unless the loss reads log Z, it is there
        to estimate accuracy, which β·KL would bias.
        """
        return [0.0] * len(sampled), None


def rewards_to_train_on(completions: Sequence[Completion]) -> Tensor:
    """Reward and parts of each completion, float32 [B]; NaN if it was not judged."""
    return torch.tensor([math.nan if c.total is None else c.total for c in completions])


def group_index(keys: Sequence[str]) -> Tensor:
    """Number the distinct keys from 0 in order of first appearance: int64 [B]."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.long)


def standardised(completions: Sequence[Completion], reward_B: Tensor) -> Tensor:
    """Each reward's z-score in its group, float32 [B]; NaN stays NaN and does not count."""
    judged_B = ~reward_B.isnan()
    score_B = torch.full_like(reward_B, torch.nan)
    keys = [c.key for c, judged in zip(completions, judged_B.tolist(), strict=True) if judged]
    score_B[judged_B] = group_relative_advantage(reward_B[judged_B], group_index(keys))
    return score_B


def mean_reference_log_ratio(completion: Completion) -> float:
    """mean_t(log μ − log π_ref) of a completion, for objectives whose μ is the sampler's policy."""
    anchor, reference = completion.anchor_logprobs, completion.reference_logprobs
    assert anchor is not None
    assert reference is not None
    return (sum(anchor) - sum(reference)) / len(completion.token_ids)
