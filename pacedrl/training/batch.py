"""From judged groups and replayed completions to what learner and scheduler take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pacedrl.method import DifficultyScheduler, ReplayEntry, Rollouts
from pacedrl.training.learner import TrainingSequence
from pacedrl.types import Group


def training_batch(
    groups: Sequence[Group],
    replayed: Sequence[ReplayEntry],
    prompt_ids: Mapping[str, list[int]],
    scheduler: DifficultyScheduler,
    anchor: str,
) -> list[TrainingSequence]:
    """The judged fresh completions first, group by group, replayed ones after; all weigh the same in the loss.

    ``anchor`` is the μ of replayed completions: ``behaviour`` or ``current``.
    """
    return [*_fresh(groups, scheduler), *_replayed(replayed, prompt_ids, scheduler, anchor)]


def fresh_rollouts(groups: Sequence[Group], log_ratio_B: Sequence[float]) -> Rollouts:
    """What the scheduler observes: every completion, those with a verifier error as NaN.

    ``log_ratio_B`` has one value a judged completion, in the order of `training_batch`.
    """
    ratios = iter(log_ratio_B)
    pairs = [(group.prompt.key, completion) for group in groups for completion in group.completions]
    return Rollouts(
        [key for key, _ in pairs],
        [float("nan") if c.reward is None else c.reward for _, c in pairs],
        [0.0 if c.reward is None else next(ratios) for _, c in pairs],
        [c.token_ids for _, c in pairs],
        [c.logprobs for _, c in pairs],
    )


def replayed_rollouts(replayed: Sequence[ReplayEntry], log_ratio_B: Sequence[float]) -> Rollouts:
    """Replayed completions as the scheduler's fit takes them."""
    return Rollouts([entry.key for entry in replayed], [entry.reward for entry in replayed], log_ratio_B)


def _fresh(groups: Sequence[Group], scheduler: DifficultyScheduler) -> Iterator[TrainingSequence]:
    judged = [(group, c, c.reward) for group in groups for c in group.completions if c.reward is not None]
    keys, rewards = [group.prompt.key for group, _, _ in judged], [reward for _, _, reward in judged]
    advantages = scheduler.advantage(keys, rewards).tolist()
    for (group, completion, _), advantage in zip(judged, advantages, strict=True):
        yield TrainingSequence(group.prompt_ids, completion.token_ids, advantage, completion.logprobs)


def _replayed(
    replayed: Sequence[ReplayEntry], prompt_ids: Mapping[str, list[int]], scheduler: DifficultyScheduler, anchor: str
) -> Iterator[TrainingSequence]:
    advantages = scheduler.advantage([entry.key for entry in replayed], [entry.reward for entry in replayed]).tolist()
    for entry, advantage in zip(replayed, advantages, strict=True):
        logprobs = entry.logprobs if anchor == "behaviour" else None
        yield TrainingSequence(prompt_ids[entry.key], entry.token_ids, advantage, logprobs, replayed=True)
