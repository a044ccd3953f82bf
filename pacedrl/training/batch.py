"""From judged groups and replayed completions to what learner and scheduler take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat

import torch

from pacedrl.config import Config, FlowRlConfig, GrpoConfig, TrajectoryBalanceConfig
from pacedrl.distributed.scheduler import Scheduler
from pacedrl.method import ReplayEntry, Rollouts, group_relative_advantage
from pacedrl.training.objective import fresh_advantages, group_index, replayed_advantages
from pacedrl.training.sequences import TrainingSequence
from pacedrl.types import Completion, Group

ReferenceLogprobs = Callable[[Sequence[TrainingSequence]], list[list[float]]]


def judged_completions(groups: Sequence[Group]) -> list[tuple[Group, Completion, float]]:
    """Those with a reward, group by group, with all that the policy is trained on: reward and parts."""
    return [(group, c, c.total) for group in groups for c in group.completions if c.total is not None]


def training_batch(
    groups: Sequence[Group],
    replayed: Sequence[ReplayEntry],
    prompt_ids: Mapping[str, list[int]],
    scheduler: Scheduler,
    config: Config,
    reference: ReferenceLogprobs | None = None,
) -> list[TrainingSequence]:
    """The judged fresh completions first, group by group, replayed ones after; all weigh the same in the loss.

    ``reference`` gives the initial policy's log-probabilities, where the objective reads them.
    """
    fresh = _fresh(groups, scheduler, config, reference)
    return [*fresh, *_replayed(replayed, prompt_ids, scheduler, config)]


def fresh_rollouts(
    groups: Sequence[Group], batch: Sequence[TrainingSequence], log_ratio_B: Sequence[float], config: Config
) -> Rollouts:
    """What the scheduler observes: every completion, those with a verifier error as NaN.

    ``groups`` may hold more than was trained on, for a gate may drop some: these inform the estimates, but are not
    replayed. ``batch`` and ``log_ratio_B``, Σ_t (log π_θ − log μ), are of the fresh sequences trained on. Only where
    log Z is part of the objective does its fit take the log-ratio: elsewhere it is there to estimate accuracy, which
    β·KL would bias.
    """
    pairs = [(group.prompt.key, completion) for group in groups for completion in group.completions]
    trained = {id(sequence.completion_ids): i for i, sequence in enumerate(batch)}
    rows = [trained.get(id(completion.token_ids)) for _, completion in pairs]
    rewards = [float("nan") if c.reward is None else c.reward for _, c in pairs]
    ratios, shaped = [0.0] * len(pairs), None
    match config.objective:
        case TrajectoryBalanceConfig(log_z="learned"):
            ratios = [0.0 if row is None else log_ratio_B[row] for row in rows]
            if config.partition.z_score_rewards:
                shaped = _standardised([key for key, _ in pairs], rewards)
        case FlowRlConfig():
            # Its log Z is of z-scored rewards and of mean_t(log π_θ − log π_ref), known where there was training.
            totals = [float("nan") if c.total is None else c.total for _, c in pairs]
            scores = _standardised([key for key, _ in pairs], totals)
            shaped = [float("nan") if row is None else score for row, score in zip(rows, scores, strict=True)]
            ratios = [0.0 if row is None else _reference_log_ratio(batch[row], log_ratio_B[row]) for row in rows]
    return Rollouts(
        [key for key, _ in pairs],
        rewards,
        ratios,
        [None if row is None else c.token_ids for row, (_, c) in zip(rows, pairs, strict=True)],
        [c.logprobs for _, c in pairs],
        shaped,
    )


def replayed_rollouts(replayed: Sequence[ReplayEntry], log_ratio_B: Sequence[float]) -> Rollouts:
    """Replayed completions as the scheduler's fit takes them."""
    return Rollouts([entry.key for entry in replayed], [entry.reward for entry in replayed], log_ratio_B)


def _fresh(
    groups: Sequence[Group], scheduler: Scheduler, config: Config, reference: ReferenceLogprobs | None
) -> list[TrainingSequence]:
    judged = judged_completions(groups)
    if not judged:
        return []
    # The clipped ratio is against the trainer's own π_old: its bounds may be as narrow as the gap to the sampler's.
    own_anchor = isinstance(config.objective, GrpoConfig)
    batch = [
        TrainingSequence(
            group.prompt_ids, c.token_ids, 0.0, None if own_anchor else c.logprobs, sampler_logprobs=c.logprobs
        )
        for group, c, _ in judged
    ]
    if reference is not None:
        pairs = zip(batch, reference(batch), strict=True)
        batch = [replace(sequence, reference_logprobs=logprobs) for sequence, logprobs in pairs]
    keys, reward_B = [group.prompt.key for group, _, _ in judged], torch.tensor([reward for _, _, reward in judged])
    old_log_ratio_B = torch.tensor([sequence.mean_reference_log_ratio for sequence in batch])
    advantages = fresh_advantages(config.objective, scheduler, keys, reward_B, old_log_ratio_B).tolist()
    return [replace(sequence, advantage=a) for sequence, a in zip(batch, advantages, strict=True)]


def _replayed(
    replayed: Sequence[ReplayEntry], prompt_ids: Mapping[str, list[int]], scheduler: Scheduler, config: Config
) -> list[TrainingSequence]:
    if not replayed:
        return []
    reward_B = torch.tensor([entry.reward for entry in replayed])
    advantages = replayed_advantages(config.objective, scheduler, [entry.key for entry in replayed], reward_B).tolist()
    anchors = [entry.logprobs for entry in replayed] if config.replay.anchor == "behaviour" else repeat(None)
    return [
        TrainingSequence(prompt_ids[entry.key], entry.token_ids, advantage, anchor, replayed=True)
        for entry, advantage, anchor in zip(replayed, advantages, anchors, strict=False)
    ]


def _reference_log_ratio(sequence: TrainingSequence, log_ratio: float) -> float:
    """mean_t(log π_θ − log π_ref) from Σ_t (log π_θ − log π_old)."""
    return log_ratio / len(sequence.completion_ids) + sequence.mean_reference_log_ratio


def _standardised(keys: Sequence[str], rewards: Sequence[float]) -> list[float]:
    """The group's z-score of every judged reward; NaN stays NaN."""
    reward_B = torch.tensor(rewards)
    kept = ~reward_B.isnan()
    shaped_B = torch.full_like(reward_B, torch.nan)
    group_B = group_index([key for key, judged in zip(keys, kept.tolist(), strict=True) if judged])
    shaped_B[kept] = group_relative_advantage(reward_B[kept], group_B)
    return [float(value) for value in shaped_B]
