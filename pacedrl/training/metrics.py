"""Figures of one step, flat, with slash names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pacedrl.distributed.scheduler import Scheduler
from pacedrl.types import Group


def rollout_metrics(groups: Sequence[Group], parts: Sequence[str] = ()) -> dict[str, float]:
    """Rewards, lengths and verifier errors of a step's completions; errors are counted, not averaged in as zeros.

    ``reward/mean`` is NaN when nothing was judged. ``reward/mixed_groups`` is the share of groups that hold different
    rewards. ``reward/total_mean`` is what the policy is trained on, ``reward/part/NAME`` what each of ``parts`` adds
    to it, mean over the completions that have it.
    """
    completions = [completion for group in groups for completion in group.completions]
    rewards = [completion.reward for completion in completions if completion.reward is not None]
    lengths = [len(completion.token_ids) for completion in completions]
    totals = [completion.total for completion in completions if completion.total is not None]
    added = {name: [c.parts[name] for c in completions if c.reward is not None and name in c.parts] for name in parts}
    mixed = [len({c.reward for c in group.completions if c.reward is not None}) > 1 for group in groups]
    return {
        "rollouts/step": float(len(completions)),
        "reward/mean": float(np.mean(rewards)) if rewards else float("nan"),
        "reward/total_mean": float(np.mean(totals)) if totals else float("nan"),
        "reward/mixed_groups": float(np.mean(mixed)),
        "completion/length_mean": float(np.mean(lengths)),
        "completion/length_max": float(max(lengths)),
        "completion/truncated": float(np.mean([c.finish_reason == "length" for c in completions])),
        "verifier/errors": float(len(completions) - len(rewards)),
    } | {f"reward/part/{name}": float(np.mean(values)) if values else float("nan") for name, values in added.items()}


def sample_rows(groups: Sequence[Group], estimates: Mapping[str, float], count: int) -> list[dict[str, Any]]:
    """One completion of each of ``count`` groups spread over the batch, and the first that failed in the verifier."""
    spread = np.linspace(0, len(groups) - 1, min(count, len(groups))).astype(int).tolist() if count else []
    shown = [(groups[i], groups[i].completions[0]) for i in spread]
    failed = [(group, c) for group in groups for c in group.completions if c.error is not None][:1]
    failed = [pair for pair in failed if all(pair[1] is not completion for _, completion in shown)]
    return [
        {
            "key": group.prompt.key,
            "task": group.prompt.task,
            "prompt": group.prompt.content,
            "completion": completion.text,
            "reward": completion.reward,
            "parts": completion.parts,
            "error": completion.error,
            "finish_reason": completion.finish_reason,
            "answer": group.prompt.answer,
            "observed_accuracy": group.observed_accuracy,
            "accuracy_estimate": estimates[group.prompt.key],
        }
        for group, completion in [*shown, *(failed if count else [])]
    ]


@dataclass(frozen=True)
class Believed:
    """What was thought of accuracy before a step's results were known."""

    estimates: dict[str, float]
    """Of the sampled prompts, by key."""
    pool: dict[str, Any] | None
    """Histogram over the whole training set (`pacedrl.method.estimator.pool_histogram`)."""


def believed(scheduler: Scheduler, groups: Sequence[Group]) -> Believed:
    """Asks for it: to be called before ``scheduler.observe``."""
    keys = [group.prompt.key for group in groups]
    estimates = dict(zip(keys, scheduler.accuracy_estimate(keys).tolist(), strict=True))
    return Believed(estimates, scheduler.pool())


def group_row(groups: Sequence[Group], believed: Believed) -> dict[str, Any]:
    """Every prompt of a step: its key, what its accuracy was thought to be, and its verdicts, None where there is none.

    ``pool`` is what was thought of all prompts, from which these were chosen.
    """
    return {
        "keys": [group.prompt.key for group in groups],
        "accuracy_estimate": [round(believed.estimates[group.prompt.key], 6) for group in groups],
        "rewards": [[completion.reward for completion in group.completions] for group in groups],
        "pool": believed.pool,
    }
