"""A step's groups: which were sampled, which of them are trained on, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pacedrl.config import DynamicGateConfig, GateConfig, LiloGateConfig
from pacedrl.method import most_learnable, uninformative
from pacedrl.types import Completion, Group, Prompt

REASONS = ("all_right", "all_wrong", "all_equal", "unjudged", "less_learnable", "surplus")

Select = Callable[[int, Collection[str]], list[str]]
"""(how many prompts, keys to leave out) → keys; fewer than asked for when there are no more."""
Rollout = Callable[[list[str]], list[Group]]
"""Samples and judges the groups of the prompts named."""


@dataclass
class Collected:
    """``sampled`` are all groups, in order: they were paid for and count as generated. ``kept`` are trained on."""

    sampled: list[Group] = field(default_factory=list)
    kept: list[Group] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    capped: bool = False
    """The gate was not satisfied: the step trains on fewer than P groups."""
    policy_step: int = 0
    """Steps that the policy which sampled them had been trained for."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each phase: select, generate, verify."""

    def metrics(self) -> dict[str, float]:
        """``gate/...``: groups kept, groups dropped by reason, batches sampled, and whether a cap was hit."""
        dropped = {f"gate/dropped_{reason}": float(self.dropped[reason]) for reason in REASONS}
        counts = {"gate/kept": len(self.kept), "gate/batches": self.batches, "gate/capped": self.capped}
        return dropped | {name: float(value) for name, value in counts.items()}


def dump_collected(collected: Collected) -> dict[str, Any]:
    """As a checkpoint keeps it: tensors and plain values, prompts by key; not how long it took."""
    completions = [completion for group in collected.sampled for completion in group.completions]
    place = {id(group): i for i, group in enumerate(collected.sampled)}
    return {
        "keys": [group.prompt.key for group in collected.sampled],
        "sizes": [len(group.completions) for group in collected.sampled],
        "kept": [place[id(group)] for group in collected.kept],
        "dropped": dict(collected.dropped),
        "batches": collected.batches,
        "capped": collected.capped,
        "policy_step": collected.policy_step,
        "lengths": [len(completion.token_ids) for completion in completions],
        "token_ids": torch.tensor([token for completion in completions for token in completion.token_ids]),
        "logprobs": torch.tensor([value for completion in completions for value in completion.logprobs]),
        "judged": [[c.text, c.finish_reason, c.reward, c.error, c.parts] for c in completions],
    }


def load_collected(
    state: Mapping[str, Any], prompts: Mapping[str, Prompt], prompt_ids: Mapping[str, list[int]]
) -> Collected:
    """What `dump_collected` gave."""
    ids = iter(torch.split(state["token_ids"], state["lengths"]))
    logprobs = iter(torch.split(state["logprobs"], state["lengths"]))
    judged = iter(state["judged"])
    sampled = [
        Group(
            prompts[key],
            prompt_ids[key],
            [Completion(next(ids).tolist(), next(logprobs).tolist(), *next(judged)) for _ in range(size)],
        )
        for key, size in zip(state["keys"], state["sizes"], strict=True)
    ]
    return Collected(
        sampled,
        [sampled[i] for i in state["kept"]],
        Counter(state["dropped"]),
        state["batches"],
        state["capped"],
        state["policy_step"],
    )


def collect(gate: GateConfig, count: int, select: Select, rollout: Rollout) -> Collected:
    """Sample until the gate has ``count`` groups to train on, or may not sample more."""
    match gate:
        case DynamicGateConfig():
            return _dynamic(gate, count, select, rollout)
        case LiloGateConfig():
            sampled = rollout(select(count * gate.oversample, ()))
            judged = [group for group in sampled if group.rewards]
            kept = [judged[i] for i in most_learnable([group.rewards for group in judged], count)]
            dropped = Counter(unjudged=len(sampled) - len(judged), less_learnable=len(judged) - len(kept))
            return Collected(sampled, kept, dropped, batches=1, capped=len(kept) < count)
        case _:
            sampled = rollout(select(count, ()))
            return Collected(sampled, sampled, batches=1)


def _dynamic(gate: DynamicGateConfig, count: int, select: Select, rollout: Rollout) -> Collected:
    """DAPO's dynamic sampling. What is informative beyond ``count`` is dropped too, as there."""
    result = Collected()
    while len(result.kept) < count and result.batches < gate.max_batches:
        keys = select(count, [group.prompt.key for group in result.sampled])
        if not keys:  # every prompt was sampled in this step
            break
        result.batches += 1
        for group in rollout(keys):
            result.sampled.append(group)
            reason = uninformative(group.rewards)
            if reason is None and len(result.kept) == count:
                reason = "surplus"
            if reason is None:
                result.kept.append(group)
            else:
                result.dropped[reason] += 1
    result.capped = len(result.kept) < count
    return result
