"""The state of a step's rollouts that were sampled ahead and are not trained on yet, for a checkpoint."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from pacedrl.rollouts.collect import Collected
from pacedrl.types import Completion, Group, Prompt


def dump_collected(collected: Collected) -> dict[str, Any]:
    """Return the state for a checkpoint, without times: tensors and plain values, with prompts by key."""
    completions = [completion for group in collected.sampled for completion in group.completions]
    return {
        "keys": [group.prompt.key for group in collected.sampled],
        "sizes": [len(group.completions) for group in collected.sampled],
        "dropped": [group.dropped for group in collected.sampled],
        "batches": collected.batches,
        "capped": collected.capped,
        "policy_step": collected.policy_step,
        "lengths": [len(completion.token_ids) for completion in completions],
        "token_ids": torch.tensor([token for completion in completions for token in completion.token_ids]),
        "logprobs": torch.tensor([value for completion in completions for value in completion.logprobs]),
        "judged": [[c.text, c.finish_reason, c.reward, c.error, c.parts] for c in completions],
    }


def load_collected(state: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Collected:
    """Restore the state from `dump_collected`."""
    ids = iter(torch.split(state["token_ids"], state["lengths"]))
    logprobs = iter(torch.split(state["logprobs"], state["lengths"]))
    judged = iter(state["judged"])
    sampled = [
        Group(
            prompts[key],
            [Completion(next(ids).tolist(), next(logprobs).tolist(), *next(judged)) for _ in range(size)],
            dropped,
        )
        for key, size, dropped in zip(state["keys"], state["sizes"], _dropped(state), strict=True)
    ]
    return Collected(sampled, state["batches"], state["capped"], state["policy_step"])


def _dropped(state: Mapping[str, Any]) -> list[str | None]:
    """Return each group's reason for being dropped. Older checkpoints hold the kept groups and the number of groups
    dropped per reason."""
    if isinstance(state["dropped"], list):
        return state["dropped"]
    reasons = Counter(state["dropped"]).elements()
    return [None if i in state["kept"] else next(reasons) for i in range(len(state["keys"]))]
