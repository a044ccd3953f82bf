"""Runs our trainer on completions that another trainer sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings
from pacedrl.types import Completion

Steps = list[dict[tuple[int, ...], list[list[int]]]]
"""Token ids of each prompt's completions, one mapping per step."""


class Recorded:
    """A sampler that returns the completions another trainer's loop trained on, one step at a time."""

    def __init__(self, policy: Policy, steps: Steps) -> None:
        self.policy = policy
        self.steps = steps

    def sync(self, policy: Policy, tick: Callable[[], None] = lambda: None) -> None: ...

    def rest(self) -> None: ...

    def sample(
        self,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seeds: Sequence[int],
        tick: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        step = self.steps.pop(0)
        assert {tuple(ids) for ids in prompt_ids} == set(step)  # both have chosen the same prompts
        for i, prompt in enumerate(prompt_ids):
            completions = step[tuple(prompt)]
            with torch.no_grad():
                logprobs_BT, _, mask_BT = self.policy.logprobs([prompt] * len(completions), completions)
            yield (
                i,
                [
                    Completion(
                        ids, row[mask].tolist(), self.policy.tokenizer.decode(ids, skip_special_tokens=True), "length"
                    )
                    for ids, row, mask in zip(completions, logprobs_BT, mask_BT, strict=True)
                ],
            )
