"""One optimiser step of the policy on a batch of completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pacedrl.config import OptimizerConfig
from pacedrl.method.objectives import trajectory_balance
from pacedrl.policy.policy import Policy

Metrics = dict[str, float]

METRICS = (
    "loss/objective",
    "objective/delta_abs",
    "kl/old",
    "entropy",
    "mismatch/logprob_mean",
    "mismatch/logprob_max",
    "grad_norm",
    "optim/learning_rate",
)
"""Names of what `Learner.update` measures; all NaN for an empty batch."""


@dataclass(frozen=True)
class TrainingSequence:
    """A completion to train on.

    ``anchor_logprobs`` is the log-probability of each token under μ; None takes the current policy's own at the start
    of the step. ``advantage`` is r/β − log Z(x).
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float
    anchor_logprobs: Sequence[float] | None
    replayed: bool = False

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Update:
    """What an update did: metrics, and Σ_t (log π_θ − log μ)_t of each sequence in the order given.

    Where ``applied`` is False the loss or gradient was not finite and the policy is as it was; log-ratios are 0 then.
    """

    metrics: Metrics
    log_ratio_B: list[float]
    applied: bool


class Learner:
    """AdamW on the policy.

    Args:
        policy: its trainable parameters are updated in place.
        config: learning rate, schedule, clipping and micro-batch size.
        total_steps: length of the run, for decaying schedules.
        temperature: of sampling; log-probabilities are taken at the same.
    """

    def __init__(self, policy: Policy, config: OptimizerConfig, total_steps: int, temperature: float) -> None:
        self.policy = policy
        self.config = config
        self.total_steps = total_steps
        self.temperature = temperature
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )

    def update(self, batch: Sequence[TrainingSequence], step: int, tick: Callable[[], None] = lambda: None) -> Update:
        """One step of trajectory balance on the batch.

        ``step`` (from 0) sets the learning rate. ``tick`` is called before each micro-batch; what it raises leaves
        the policy as it was.
        """
        if not batch:
            return Update(dict.fromkeys(METRICS, math.nan), [], applied=False)
        totals, log_ratio_B = self.accumulate_gradient(batch, tick)
        tick()
        return self._apply(totals, log_ratio_B, batch, step)

    def accumulate_gradient(
        self, batch: Sequence[TrainingSequence], tick: Callable[[], None] = lambda: None
    ) -> tuple[Metrics, list[float]]:
        """Forward and backward over the whole batch, micro-batch by micro-batch, without a step of the optimiser.

        Returns metrics summed over tokens and sequences, and each sequence's log-ratio.
        """
        totals: Metrics = {}
        largest_gap = 0.0
        log_ratio_B = [0.0] * len(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.policy.gradient_checkpointing(self.config.gradient_checkpointing):
            for rows in micro_batches(batch, self.config.tokens_per_micro_batch):
                tick()
                ratios, gap, sums = self._micro_batch([batch[i] for i in rows], normalizer=len(batch))
                largest_gap = float(np.maximum(largest_gap, gap))  # NaN stays NaN
                for i, ratio in zip(rows, ratios, strict=True):
                    log_ratio_B[i] = ratio
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0.0) + value
        return totals | {"mismatch/logprob_max": largest_gap}, log_ratio_B

    def _micro_batch(self, batch: list[TrainingSequence], normalizer: int) -> tuple[list[float], float, Metrics]:
        """Add one micro-batch's gradient.

        Returns each sequence's log-ratio, the largest gap between sampler and trainer at a fresh token, and sums over
        fresh tokens and sequences for `_apply` to turn into means.
        """
        logprobs_BT, entropy_BT, mask_BT = self.policy.logprobs(
            [sequence.prompt_ids for sequence in batch],
            [sequence.completion_ids for sequence in batch],
            self.temperature,
        )
        anchor_BT = self._anchors(batch, logprobs_BT.detach())
        advantage_B = torch.tensor([sequence.advantage for sequence in batch], device=self.policy.device)
        loss, metrics = trajectory_balance(logprobs_BT, anchor_BT, mask_BT, advantage_B, normalizer)
        loss.backward()  # type: ignore[no-untyped-call]
        fresh_B = torch.tensor([not sequence.replayed for sequence in batch], device=self.policy.device)
        log_ratio_BT = (logprobs_BT.detach() - anchor_BT) * mask_BT
        gap_BT = log_ratio_BT.abs() * fresh_B[:, None]
        sums = {name: float(value) for name, value in metrics.items() if name != "kl/old"} | {
            "kl/old": float(-log_ratio_BT[fresh_B].sum()),
            "entropy": float((entropy_BT * mask_BT)[fresh_B].sum()),
            "mismatch/logprob_mean": float(gap_BT.sum()),
        }
        return log_ratio_BT.sum(dim=1).tolist(), float(gap_BT.max()), sums

    def _anchors(self, batch: list[TrainingSequence], current_BT: Tensor) -> Tensor:
        """log μ of every token: the sampler's, or the current policy's own where none is given."""
        rows = [
            current_BT[i, : len(sequence.completion_ids)]
            if sequence.anchor_logprobs is None
            else torch.tensor(sequence.anchor_logprobs, dtype=torch.float32, device=self.policy.device)
            for i, sequence in enumerate(batch)
        ]
        return pad_sequence(rows, batch_first=True)

    def _apply(self, totals: Metrics, log_ratio_B: list[float], batch: Sequence[TrainingSequence], step: int) -> Update:
        fresh = [sequence for sequence in batch if not sequence.replayed]
        tokens = sum(len(sequence.completion_ids) for sequence in fresh)
        for name in ("entropy", "mismatch/logprob_mean"):
            totals[name] /= max(1, tokens)
        totals["kl/old"] /= max(1, len(fresh))
        parameters = self.policy.parameters()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm))
        applied = math.isfinite(norm) and math.isfinite(totals["loss/objective"])
        rate = self.config.learning_rate * schedule_factor(self.config, step, self.total_steps)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = totals | {"grad_norm": norm, "optim/learning_rate": rate}
        return Update(metrics, log_ratio_B if applied else [0.0] * len(batch), applied)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(deepcopy(state))


def schedule_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate's factor at ``step`` (from 0): linear warm-up, then constant, linear or cosine decay to 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def micro_batches(batch: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    """Indices in groups whose padded size, rows × longest, stays within the budget; similar lengths together.

    A sequence longer than the budget gets a micro-batch of its own.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(batch)), key=lambda i: len(batch[i])):
        if groups and (len(groups[-1]) + 1) * len(batch[i]) <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
