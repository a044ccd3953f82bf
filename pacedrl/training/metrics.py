"""Metrics of one step as flat dictionaries with slash names, and the rows of its other logs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pacedrl.types import Group


def rollout_metrics(groups: Sequence[Group], parts: Sequence[str] = ()) -> dict[str, float]:
    """Rewards, lengths and verifier errors of a step's completions; errors are counted, not averaged as zeros.

    ``reward/mean`` is NaN if nothing was judged. ``reward/mixed_groups`` is the share of groups with different rewards.
    ``reward/total_mean`` is the mean reward that the policy is trained on, parts included; ``reward/part/NAME`` is the
    mean of each of the ``parts`` over the completions that have it.
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


def sample_rows(groups: Sequence[Group], count: int) -> list[dict[str, Any]]:
    """The first completion of ``count`` groups spread over the batch, and the first with a verifier error."""
    spread = np.linspace(0, len(groups) - 1, min(count, len(groups))).astype(int).tolist() if count else []
    shown = [(i, 0) for i in spread]
    failed = [(i, j) for i, group in enumerate(groups) for j, c in enumerate(group.completions) if c.error is not None]
    places = list(dict.fromkeys([*shown, *(failed[:1] if count else [])]))
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
            "accuracy_estimate": group.accuracy_estimate,
        }
        for group, completion in ((groups[i], groups[i].completions[j]) for i, j in places)
    ]


def group_row(groups: Sequence[Group], pool: dict[str, Any] | None) -> dict[str, Any]:
    """For each prompt of a step its key, the estimate of its accuracy and its rewards (None for a verifier error).

    ``pool`` is the histogram of the estimates of all prompts, from which these were selected
    (`pacedrl.method.estimator.pool_histogram`).
    """
    return {
        "keys": [group.prompt.key for group in groups],
        "accuracy_estimate": [round(group.accuracy_estimate, 6) for group in groups],
        "rewards": [[completion.reward for completion in group.completions] for group in groups],
        "pool": pool,
    }
