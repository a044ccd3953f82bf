"""The policy's update on a batch of completions: one optimiser step, or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pacedrl.config import OptimizerConfig
from pacedrl.distributed.ranks import Ranks
from pacedrl.distributed.sharding import join_optimizer_states, own_part, whole
from pacedrl.method.objectives import Metrics as TensorMetrics
from pacedrl.policy.activations import activation_offload, gradient_checkpointing
from pacedrl.policy.cpu import return_freed_memory
from pacedrl.policy.policy import Policy
from pacedrl.seeding import derive_seed
from pacedrl.training.objective import BatchSize, LossInputs
from pacedrl.training.sequences import TrainingSequence, model_passes, sequence_logprobs

Metrics = dict[str, float]
Loss = Callable[[LossInputs, BatchSize], tuple[Tensor, TensorMetrics]]
"""A micro-batch's share of the whole batch's loss and metrics: `pacedrl.training.objective.policy_loss`, bound."""

METRICS = (
    "loss/objective",
    "objective/delta_abs",
    "objective/clipped",
    "objective/weight",
    "kl/reference",
    "kl/old",
    "entropy",
    "mismatch/logprob_mean",
    "mismatch/logprob_max",
    "grad_norm",
    "optim/learning_rate",
)
"""Names of what `Learner.update` measures; NaN where the objective or the batch has no such thing."""
OF_THE_SAMPLER = ("mismatch/logprob_mean", "mismatch/logprob_max")
"""Measured before the first optimiser step, while trainer and sampler still hold one policy."""


@dataclass(frozen=True)
class Update:
    """What an update did: metrics, and Σ_t (log π_θ − log μ)_t of each sequence when it was last trained on.

    An optimiser step whose loss or gradient is not finite is left out and counted in ``skipped``; the log-ratios of
    its sequences are 0. ``trained`` is the number of sequences in the others, each counted once an epoch; where
    ``applied`` is False there were none.
    """

    metrics: Metrics
    log_ratio_B: list[float]
    trained: int = 0
    skipped: int = 0

    @property
    def applied(self) -> bool:
        return self.trained > 0


class Learner:
    """AdamW on the policy.

    Args:
        policy: its trainable parameters are updated in place.
        config: learning rate, schedule, clipping, mini- and micro-batch size.
        total_steps: length of the run, for decaying schedules.
        temperature: of sampling; log-probabilities are taken at the same.
        loss: the objective's.
        seed: of the split into mini-batches.
        ranks: the processes among which the sequences of an optimiser step are shared out.
    """

    def __init__(
        self,
        policy: Policy,
        config: OptimizerConfig,
        total_steps: int,
        temperature: float,
        loss: Loss,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        self.policy = policy
        self.config = config
        self.total_steps = total_steps
        self.temperature = temperature
        self.loss = loss
        self.seed = seed
        self.ranks = ranks or Ranks()
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,  # one pass over the memory: a seventh of the time, on a CPU
        )

    def update(self, batch: Sequence[TrainingSequence], step: int, tick: Callable[[], None] = lambda: None) -> Update:
        """Train on the batch, with an optimiser step on each mini-batch of each epoch.

        ``step`` (from 0) sets the learning rate. ``tick`` is called before each micro-batch until the first optimiser
        step; what it raises leaves the policy as it was. After that the update is seen through. Metrics are means over
        optimiser steps.
        """
        if not batch:
            return Update(dict.fromkeys(METRICS, math.nan), [])
        return_freed_memory()  # sampling's
        batch = self._with_anchors(batch, tick)
        log_ratio_B = [0.0] * len(batch)
        measured: list[Metrics] = []
        trained = skipped = 0
        for rows in self._mini_batches(len(batch), step):
            part = [batch[i] for i in rows]
            totals, ratios = self.accumulate_gradient(part, tick)
            tick()
            metrics, stepped = self._apply(totals, part, step)
            measured.append(metrics)
            trained += len(rows) * stepped
            skipped += not stepped
            for i, ratio in zip(rows, ratios, strict=True):
                log_ratio_B[i] = ratio if stepped else 0.0
            tick = _nothing
        return_freed_memory()
        return Update(_means(measured), log_ratio_B, trained, skipped)

    def accumulate_gradient(
        self, batch: Sequence[TrainingSequence], tick: Callable[[], None] = lambda: None
    ) -> tuple[Metrics, list[float]]:
        """Forward and backward over the whole batch, micro-batch by micro-batch, without a step of the optimiser.

        Returns metrics summed over tokens and sequences, and each sequence's log-ratio.
        """
        totals: Metrics = {}
        largest_gap = 0.0
        own = batch[self.ranks.part([len(sequence) for sequence in batch])]
        own_ratios = [0.0] * len(own)
        size = BatchSize(len(batch), sum(len(sequence.completion_ids) for sequence in batch))
        self.optimizer.zero_grad(set_to_none=True)
        with gradient_checkpointing(self.policy.causal_lm, self.config.gradient_checkpointing):
            for rows in model_passes(self.policy, own, self.config.tokens_per_micro_batch, self.ranks):
                tick()
                ratios, gap, sums = self._micro_batch([own[i] for i in rows], size)
                largest_gap = float(np.maximum(largest_gap, gap))  # NaN stays NaN
                for i, ratio in zip(rows, ratios, strict=True):
                    own_ratios[i] = ratio
                for name, value in sums.items():
                    totals[name] = totals.get(name, 0.0) + value
        if not self.policy.sharded:  # there they were summed as they came
            self.ranks.sum_gradients(self.policy.parameters())
        return _joined(self.ranks.gather((totals, largest_gap, own_ratios)))

    def _with_anchors(self, batch: Sequence[TrainingSequence], tick: Callable[[], None]) -> Sequence[TrainingSequence]:
        """The batch with every μ given, where the policy will have moved before some sequence is trained on."""
        without = [i for i, sequence in enumerate(batch) if sequence.anchor_logprobs is None]
        if not without or self.config.mini_batches * self.config.epochs == 1:
            return batch
        sequences, budget = [batch[i] for i in without], self.config.tokens_per_micro_batch
        logprobs = sequence_logprobs(self.policy, sequences, self.temperature, budget, tick, self.ranks)
        anchors = dict(zip(without, logprobs, strict=True))
        return [replace(s, anchor_logprobs=anchors[i]) if i in anchors else s for i, s in enumerate(batch)]

    def _mini_batches(self, size: int, step: int) -> Iterator[list[int]]:
        """Indices of the sequences of each optimiser step; in their own order where there is one mini-batch."""
        count = min(self.config.mini_batches, size)
        for epoch in range(self.config.epochs):
            rng = np.random.default_rng(derive_seed(self.seed, "mini-batches", step, epoch))
            order = np.arange(size) if count == 1 else rng.permutation(size)
            for part in np.array_split(order, count):
                yield part.tolist()

    def _micro_batch(self, batch: list[TrainingSequence], size: BatchSize) -> tuple[list[float], float, Metrics]:
        """Add one micro-batch's gradient.

        Returns each sequence's log-ratio, the largest gap between sampler and trainer at a fresh token, and sums over
        fresh tokens and sequences for `_apply` to turn into means.
        """
        with activation_offload(self.policy.causal_lm, self.config.activation_offload):
            logprobs_BT, entropy_BT, mask_BT = self.policy.logprobs(
                [sequence.prompt_ids for sequence in batch],
                [sequence.completion_ids for sequence in batch],
                self.temperature,
            )
        anchor_BT = self._anchors(batch, logprobs_BT.detach())
        advantage_B = torch.tensor([sequence.advantage for sequence in batch], device=self.policy.device)
        sampled_BT = self._sampled(batch, anchor_BT)
        inputs = LossInputs(logprobs_BT, anchor_BT, mask_BT, advantage_B, sampled_BT, self._references(batch))
        loss, metrics = self.loss(inputs, size)
        loss.backward()  # type: ignore[no-untyped-call]
        fresh_B = torch.tensor([not sequence.replayed for sequence in batch], device=self.policy.device)
        log_ratio_BT = (logprobs_BT.detach() - anchor_BT) * mask_BT
        gap_BT = (logprobs_BT.detach() - sampled_BT).abs() * (mask_BT & fresh_B[:, None])
        sums = {name: float(value) for name, value in metrics.items()} | {
            "kl/old": float(-log_ratio_BT[fresh_B].sum()),
            "entropy": float((entropy_BT * mask_BT)[fresh_B].sum()),
            "mismatch/logprob_mean": float(gap_BT.sum()),
        }
        return log_ratio_BT.sum(dim=1).tolist(), float(gap_BT.max()), sums

    def _references(self, batch: list[TrainingSequence]) -> Tensor | None:
        rows = [sequence.reference_logprobs for sequence in batch if sequence.reference_logprobs is not None]
        if not rows:
            return None
        assert len(rows) == len(batch)
        tensors = [torch.tensor(row, dtype=torch.float32, device=self.policy.device) for row in rows]
        return pad_sequence(tensors, batch_first=True)

    def _sampled(self, batch: list[TrainingSequence], anchor_BT: Tensor) -> Tensor:
        """The sampler's log-probability of every token."""
        rows = [
            anchor_BT[i, : len(sequence.completion_ids)]
            if sequence.sampler_logprobs is None
            else torch.tensor(sequence.sampler_logprobs, dtype=torch.float32, device=self.policy.device)
            for i, sequence in enumerate(batch)
        ]
        return pad_sequence(rows, batch_first=True)

    def _anchors(self, batch: list[TrainingSequence], current_BT: Tensor) -> Tensor:
        """log μ of every token: the sampler's, or the current policy's own where none is given."""
        rows = [
            current_BT[i, : len(sequence.completion_ids)]
            if sequence.anchor_logprobs is None
            else torch.tensor(sequence.anchor_logprobs, dtype=torch.float32, device=self.policy.device)
            for i, sequence in enumerate(batch)
        ]
        return pad_sequence(rows, batch_first=True)

    def _apply(self, totals: Metrics, batch: Sequence[TrainingSequence], step: int) -> tuple[Metrics, bool]:
        fresh = [sequence for sequence in batch if not sequence.replayed]
        tokens = sum(len(sequence.completion_ids) for sequence in fresh)
        for name, count in (("entropy", tokens), ("mismatch/logprob_mean", tokens), ("kl/old", len(fresh))):
            totals[name] = totals[name] / count if fresh else math.nan
        if not fresh:
            totals["mismatch/logprob_max"] = math.nan
        parameters = self.policy.parameters()
        norm = float(whole(torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)))
        applied = math.isfinite(norm) and math.isfinite(totals["loss/objective"])
        rate = self.config.learning_rate * schedule_factor(self.config, step, self.total_steps)
        if applied:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals | {"grad_norm": norm, "optim/learning_rate": rate}, applied

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state; of a policy that is split, this process's part of it."""
        state = self.optimizer.state_dict()
        parts = {i: {name: own_part(tensor) for name, tensor in one.items()} for i, one in state["state"].items()}
        return state | {"state": parts}

    def load_state_dict(self, parts: Sequence[dict[str, Any]]) -> None:
        """What the `state_dict` of each process was: of one alone, or of all that a policy was split among."""
        self.optimizer.load_state_dict(join_optimizer_states(parts, self.policy.parameters()))


def _nothing() -> None: ...


def _joined(parts: Sequence[tuple[Metrics, float, list[float]]]) -> tuple[Metrics, list[float]]:
    """What `Learner.accumulate_gradient` measured, of all processes."""
    totals: Metrics = {}
    for sums, _, _ in parts:
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
    gap = float(np.max([gap for _, gap, _ in parts]))  # NaN stays NaN
    return totals | {"mismatch/logprob_max": gap}, [ratio for _, _, ratios in parts for ratio in ratios]


def _means(measured: Sequence[Metrics]) -> Metrics:
    """The mean of each metric over the optimiser steps that have it; of the first step where only that counts."""
    rows = {name: [m[name] for m in measured if not math.isnan(m.get(name, math.nan))] for name in METRICS}
    means = {name: sum(values) / len(values) if values else math.nan for name, values in rows.items()}
    return means | {name: measured[0][name] for name in OF_THE_SAMPLER}


def schedule_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate's factor at ``step`` (from 0): linear warm-up, then constant, linear or cosine decay to 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
