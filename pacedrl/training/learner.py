"""The policy's update: its batch, one or several optimiser steps, and the rollouts that the scheduler observes."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pacedrl.config import OptimizerConfig
from pacedrl.distributed.ranks import Ranks
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.distributed.sharding import join_optimizer_states, own_part, whole
from pacedrl.errors import InputError
from pacedrl.method import ReplayEntry, Rollouts
from pacedrl.method.objectives import Metrics as TensorMetrics
from pacedrl.policy.activations import checkpointed_layers, gradient_checkpointing, uses_checkpointing
from pacedrl.policy.cpu import return_freed_memory
from pacedrl.policy.passes import model_passes, pass_cost, sequence_logprobs
from pacedrl.policy.policy import Policy
from pacedrl.seeding import derive_seed
from pacedrl.training.objectives.base import LossInputs, Objective
from pacedrl.types import Completion, Group, Prompt

log = logging.getLogger(__name__)

Metrics = dict[str, float]
ReferenceLogprobs = Callable[[Sequence[Completion]], list[list[float]]]
"""Log-probabilities of every completion token under the initial policy, one list per completion."""
Loss = Callable[[LossInputs], tuple[Tensor, TensorMetrics]]
"""A micro-batch's share of the whole batch's loss and metrics: `pacedrl.training.objectives.base.Objective.loss`."""

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
"""Metrics of `Learner.update`; NaN if the objective or the batch does not have them."""
SAMPLER_METRICS = ("mismatch/logprob_mean", "mismatch/logprob_max")
"""Metrics of the first optimiser step alone, before which trainer and sampler hold the same policy."""
REMEDIES = (
    "set optimizer.gradient_checkpointing=true, model.lora.r=16 or, on several GPUs, scale.shard=true, or lower "
    "optimizer.tokens_per_micro_batch or sampling.max_new_tokens"
)
"""Names the settings to change if an update does not fit into memory."""


@dataclass(frozen=True)
class Update:
    """Result of an update.

    ``skipped`` counts optimiser steps that were left out because their loss or gradient was not finite. ``trained`` is
    the number of sequences in the other steps, each counted once per epoch; it is 0 if the policy did not change.
    """

    metrics: Metrics
    trained: int = 0
    skipped: int = 0


def training_batch(
    groups: Sequence[Group],
    replayed: Sequence[ReplayEntry],
    prompts: Mapping[str, Prompt],
    objective: Objective[Any],
    scheduler: Scheduler,
    replay_anchor: Literal["behaviour", "current"] = "behaviour",
    reference: ReferenceLogprobs | None = None,
) -> list[Completion]:
    """The judged completions of the groups, then the replayed ones, each with its μ and its advantage filled in.

    All weigh the same in the loss. ``reference`` computes log-probabilities under the initial policy, for objectives
    that read them.
    """
    fresh = [completion for group in groups for completion in group.completions if completion.total is not None]
    again = [replayed_completion(entry, prompts[entry.key].token_ids) for entry in replayed]
    if replay_anchor == "current":
        for completion in again:
            completion.anchor_logprobs = None
    for completion in fresh:
        completion.anchor_logprobs = None if objective.anchored_to_trainer else completion.logprobs
    if fresh and reference is not None:
        for completion, logprobs in zip(fresh, reference(fresh), strict=True):
            completion.reference_logprobs = logprobs
    for part, advantages in ((fresh, objective.advantages), (again, objective.replayed_advantages)):
        if part:
            for completion, advantage in zip(part, advantages(part, scheduler).tolist(), strict=True):
                completion.advantage = advantage
    return [*fresh, *again]


def replayed_completion(entry: ReplayEntry, prompt_ids: Sequence[int]) -> Completion:
    """The completion of an entry of the replay buffer; its μ is the policy that sampled it."""
    return Completion(
        list(entry.token_ids),
        list(entry.logprobs),
        reward=entry.reward,
        key=entry.key,
        prompt_ids=prompt_ids,
        replayed=True,
        anchor_logprobs=entry.logprobs,
    )


@dataclass
class Learner:
    """AdamW on the policy, whose trainable parameters are updated in place.

    If a GPU runs out of memory in a micro-batch, the gradient is computed anew with smaller micro-batches on all ranks.
    A sharded policy cannot do that, because the other processes wait for its weights.

    Raises InputError if gradient checkpointing is asked for and the model cannot do it.

    Schedules decay over ``total_steps``. Log-probabilities are taken at the ``temperature`` of sampling. ``seed`` is
    that of the split into mini-batches. The ``ranks`` share the sequences of an optimiser step.
    """

    policy: Policy
    config: OptimizerConfig
    total_steps: int
    temperature: float
    loss: Loss
    seed: int = 0
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.checkpointed = uses_checkpointing(
            self.policy.causal_lm, self.config.gradient_checkpointing, self.policy.device
        )
        if self.checkpointed:
            checkpointed_layers(self.policy.causal_lm)  # refuses a model that cannot, before anything is sampled
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
            fused=True,  # one pass over the memory: a seventh of the time, on a CPU
        )
        self.token_budget: int = self.config.tokens_per_micro_batch
        """``tokens_per_micro_batch``, or half of the smallest pass that ran out of memory, rounded up to a whole
        number, which the setting can take. All ranks have the same."""

    def update(self, batch: Sequence[Completion], step: int, tick: Callable[[], None] = lambda: None) -> Update:
        """Train on the batch, with an optimiser step on each mini-batch of each epoch; fill in each ``log_ratio``.

        ``step`` (from 0) sets the learning rate. ``tick`` is called before each micro-batch until the first optimiser
        step; if it raises, the policy is unchanged. From then on the update is completed. Metrics are means over
        optimiser steps.

        Raises InputError if the memory is too small even for one sequence.
        """
        if not batch:
            return Update(dict.fromkeys(METRICS, math.nan))
        return_freed_memory()  # that sampling freed
        self._fill_in_anchors(batch, tick)
        measured: list[Metrics] = []
        trained = skipped = 0
        for rows in self._mini_batches(len(batch), step):
            part = [batch[i] for i in rows]
            totals = self.accumulate_gradient(part, tick)
            tick()
            with _out_of_memory_explained():
                metrics, stepped = self._apply(totals, part, step)
            measured.append(metrics)
            trained += len(part) * stepped
            skipped += not stepped
            if not stepped:
                for sequence in part:
                    sequence.log_ratio = 0.0
            tick = _nothing
        return_freed_memory()
        return Update(_means(measured), trained, skipped)

    def accumulate_gradient(self, batch: Sequence[Completion], tick: Callable[[], None] = lambda: None) -> Metrics:
        """Forward and backward over the whole batch, micro-batch by micro-batch, without an optimiser step.

        Fills in each sequence's ``log_ratio``. Returns metrics summed over tokens and sequences.

        Raises InputError if the memory is too small even for one sequence.
        """
        own = batch[self.ranks.own_slice([sequence.length for sequence in batch])]
        tokens = sum(len(sequence.token_ids) for sequence in batch)
        before = self.token_budget
        while True:
            measured, too_large = self._own_micro_batches(own, len(batch), tokens, tick)
            size = len(too_large), pass_cost(too_large, self.policy.takes_patterns, self.policy.pads_attention)
            parts = self.ranks.gather((_joined(measured), [sequence.log_ratio or 0.0 for sequence in own], size))
            failed = [failure for _, _, failure in parts if failure[0]]
            if not failed:
                break
            if min(failed)[0] == 1:
                raise InputError(f"the update of a single completion does not fit into memory: {REMEDIES}")
            # Of several sequences, a pass costs at most the budget, and often much less.
            self.token_budget = math.ceil(min(cost for _, cost in failed) / 2)
        if self.token_budget < before and self.ranks.main:
            log.warning(
                "a GPU ran out of memory in the update; from now on, micro-batches have at most %d tokens: set "
                "optimizer.tokens_per_micro_batch to that, or lower",
                self.token_budget,
            )
        if not self.policy.sharded:  # FSDP sums the gradients of a sharded policy itself
            self.ranks.sum_gradients(self.policy.parameters())
        for sequence, log_ratio in zip(batch, [ratio for _, ratios, _ in parts for ratio in ratios], strict=True):
            sequence.log_ratio = log_ratio
        largest_gap, totals = _joined([part for part, _, _ in parts])
        return totals | {"mismatch/logprob_max": largest_gap}

    def _own_micro_batches(
        self, own: Sequence[Completion], sequences: int, tokens: int, tick: Callable[[], None]
    ) -> tuple[list[tuple[float, Metrics]], list[Completion]]:
        """Compute this process's gradient anew, micro-batch by micro-batch.

        Returns what `_micro_batch` returned for each, and the sequences of the one that ran out of memory, if any.
        """
        measured: list[tuple[float, Metrics]] = []
        rows: list[int] = []
        self.optimizer.zero_grad(set_to_none=True)
        with gradient_checkpointing(self.policy.causal_lm, self.checkpointed):
            try:
                for rows in model_passes(self.policy, own, self.token_budget, self.ranks):
                    tick()
                    measured.append(self._micro_batch([own[i] for i in rows], sequences, tokens))
                return measured, []
            except torch.OutOfMemoryError:
                if self.policy.sharded:
                    raise InputError(f"the update does not fit into memory: {REMEDIES}") from None
        # Only here, because the exception kept the tensors of the failed pass.
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()  # does nothing without a GPU
        return [], [own[i] for i in rows]

    def _fill_in_anchors(self, batch: Sequence[Completion], tick: Callable[[], None]) -> None:
        """Fill in every missing μ if the policy will have moved before some sequence is trained on."""
        without = [sequence for sequence in batch if sequence.anchor_logprobs is None]
        if not without or self.config.mini_batches * self.config.epochs == 1:
            return
        logprobs = sequence_logprobs(self.policy, without, self.temperature, self.token_budget, tick, self.ranks)
        for sequence, own in zip(without, logprobs, strict=True):
            sequence.anchor_logprobs = own

    def _mini_batches(self, size: int, step: int) -> Iterator[list[int]]:
        """Indices of the sequences of each optimiser step; a single mini-batch keeps their order."""
        count = min(self.config.mini_batches, size)
        for epoch in range(self.config.epochs):
            rng = np.random.default_rng(derive_seed(self.seed, "mini-batches", step, epoch))
            order = np.arange(size) if count == 1 else rng.permutation(size)
            for part in np.array_split(order, count):
                yield part.tolist()

    def _micro_batch(self, batch: list[Completion], sequences: int, tokens: int) -> tuple[float, Metrics]:
        """Add the gradient of a micro-batch, and fill in its log-ratios.

        The whole batch has that many ``sequences`` and completion ``tokens``.
        Returns the largest gap between sampler and trainer at a fresh token, and sums over fresh tokens and sequences,
        which `_apply` turns into means.
        """
        logprobs_BT, entropy_BT, mask_BT = self.policy.logprobs(
            [sequence.prompt_ids for sequence in batch],
            [sequence.token_ids for sequence in batch],
            self.temperature,
        )
        lengths = [len(sequence.token_ids) for sequence in batch]
        anchor_BT = self._padded([sequence.anchor_logprobs for sequence in batch], logprobs_BT.detach(), lengths)
        advantage_B = torch.tensor([sequence.advantage for sequence in batch], device=self.policy.device)
        sampled_BT = self._padded([sequence.logprobs for sequence in batch], anchor_BT, lengths)
        references = [sequence.reference_logprobs for sequence in batch]
        reference_BT = None if None in references else self._padded(references, anchor_BT, lengths)
        loss, metrics = self.loss(
            LossInputs(logprobs_BT, anchor_BT, mask_BT, advantage_B, sampled_BT, sequences, tokens, reference_BT)
        )
        loss.backward()  # type: ignore[no-untyped-call]
        fresh_B = torch.tensor([not sequence.replayed for sequence in batch], device=self.policy.device)
        log_ratio_BT = (logprobs_BT.detach() - anchor_BT) * mask_BT
        gap_BT = (logprobs_BT.detach() - sampled_BT).abs() * (mask_BT & fresh_B[:, None])
        sums = {name: float(value) for name, value in metrics.items()} | {
            "kl/old": float(-log_ratio_BT[fresh_B].sum()),
            "entropy": float((entropy_BT * mask_BT)[fresh_B].sum()),
            "mismatch/logprob_mean": float(gap_BT.sum()),
        }
        for sequence, log_ratio in zip(batch, log_ratio_BT.sum(dim=1).tolist(), strict=True):
            sequence.log_ratio = log_ratio
        return float(gap_BT.max()), sums

    def _padded(self, rows: Sequence[Sequence[float] | None], otherwise_BT: Tensor, lengths: Sequence[int]) -> Tensor:
        """The rows as one tensor, [B, T]; a row that is None is taken from ``otherwise_BT``."""
        device = self.policy.device
        tensors = [
            otherwise_BT[i, : lengths[i]] if row is None else torch.tensor(row, dtype=torch.float32, device=device)
            for i, row in enumerate(rows)
        ]
        return pad_sequence(tensors, batch_first=True)

    def _apply(self, totals: Metrics, batch: Sequence[Completion], step: int) -> tuple[Metrics, bool]:
        fresh = [sequence for sequence in batch if not sequence.replayed]
        tokens = sum(len(sequence.token_ids) for sequence in fresh)
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
        """State of the optimiser; with a sharded policy, this process's part of it."""
        state = self.optimizer.state_dict()
        parts = {i: {name: own_part(tensor) for name, tensor in one.items()} for i, one in state["state"].items()}
        return state | {"state": parts}

    def load_state_dict(self, parts: Sequence[dict[str, Any]]) -> None:
        """Restore the state from the `state_dict` of each process that saved one."""
        self.optimizer.load_state_dict(join_optimizer_states(parts, self.policy.parameters()))


def fresh_rollouts(groups: Sequence[Group], objective: Objective[Any]) -> Rollouts:
    """Convert a step's completions to what the scheduler observes; the reward is NaN if the verifier failed.

    Groups that a gate dropped inform the estimates, but only completions that were trained on can enter replay.
    """
    completions = [completion for group in groups for completion in group.completions]
    log_ratios, targets = objective.partition_targets(completions)
    return Rollouts(
        [c.key for c in completions],
        _rewards(completions),
        log_ratios,
        [None if c.log_ratio is None else c.token_ids for c in completions],
        [c.logprobs for c in completions],
        targets,
    )


def replayed_rollouts(replayed: Sequence[Completion]) -> Rollouts:
    """Replayed completions, for the fit of log Z alone: the scheduler does not admit them to replay again."""
    return Rollouts([c.key for c in replayed], _rewards(replayed), [c.log_ratio or 0.0 for c in replayed])


def _rewards(completions: Sequence[Completion]) -> list[float]:
    return [math.nan if c.reward is None else c.reward for c in completions]


def _nothing() -> None: ...


@contextmanager
def _out_of_memory_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"the optimiser's step does not fit into memory: {REMEDIES}") from None


def _joined(parts: Sequence[tuple[float, Metrics]]) -> tuple[float, Metrics]:
    """The largest gap and the sums over micro-batches, or over processes, of what `Learner._micro_batch` returns."""
    totals: defaultdict[str, float] = defaultdict(float)
    for _, sums in parts:
        for name, value in sums.items():
            totals[name] += value
    return float(np.max([0.0, *(gap for gap, _ in parts)])), dict(totals)  # NaN stays NaN


def _means(measured: Sequence[Metrics]) -> Metrics:
    """The mean of each metric over the optimiser steps that have it; `SAMPLER_METRICS` are those of the first step."""
    rows = {name: [m[name] for m in measured if not math.isnan(m.get(name, math.nan))] for name in METRICS}
    means = {name: sum(values) / len(values) if values else math.nan for name, values in rows.items()}
    return means | {name: measured[0][name] for name in SAMPLER_METRICS}


def schedule_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Factor of the learning rate at ``step`` (from 0): linear warm-up, then the schedule of the configuration."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
