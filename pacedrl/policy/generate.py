"""Sampling with transformers' `generate` and the model's own cache, whatever that holds: one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from pacedrl.policy.draw import draw_tokens, uniforms
from pacedrl.types import Completion

if TYPE_CHECKING:
    from pacedrl.policy.policy import Policy
    from pacedrl.policy.sampler import SampledGroups, SamplingSettings, Tick, TokenLists


def generate_groups(
    policy: Policy,
    prompt_ids: TokenLists,
    settings: SamplingSettings,
    seeds: Sequence[int],
    tick: Tick,
    padded: bool,
) -> SampledGroups:
    """Sample as `pacedrl.policy.sampler.sample` does, batch by batch: a batch ends with its longest completion.

    With ``padded``, prompts of different lengths share a batch, padded on the left. Without it, a batch holds prompts
    of one length, for models whose state or positions padding would change.
    """
    longest_first = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    same = [longest_first] if padded else [list(g) for _, g in groupby(longest_first, lambda i: len(prompt_ids[i]))]
    at_once = max(1, settings.batch_size // settings.group_size)
    for prompts in same:
        for start in range(0, len(prompts), at_once):
            batch = prompts[start : start + at_once]
            rows = _Rows(policy, settings, [seeds[i] for i in batch], tick)
            rows.generate([prompt_ids[i] for i in batch for _ in range(settings.group_size)])
            for number, i in enumerate(batch):
                yield i, rows.group(number)


class _Rows:
    """The completions of one batch, G rows per prompt, while they are decoded."""

    def __init__(self, policy: Policy, settings: SamplingSettings, seeds: Sequence[int], tick: Tick) -> None:
        self.policy = policy
        self.settings = settings
        self.tick = tick
        self.ends = policy.ends(settings.stop)
        self.uniform_BT = torch.cat([uniforms(seed, settings.group_size, settings.max_new_tokens) for seed in seeds])
        self.token_ids: list[list[int]] = [[] for _ in self.uniform_BT]
        self.logprobs: list[list[float]] = [[] for _ in self.uniform_BT]
        self.ended_B = torch.zeros(len(self.uniform_BT), dtype=torch.bool)
        self.step = 0

    def generate(self, prompts: Sequence[Sequence[int]]) -> None:
        """Decode every row, given the prompt of each."""
        policy, model = self.policy, self.policy.causal_lm
        ids_BL, mask_BL = policy.padded(prompts, side="left")
        usual = model.generation_config
        # The model's own settings, such as a repetition penalty, would change the distribution.
        model.generation_config = GenerationConfig(
            max_new_tokens=self.settings.max_new_tokens, do_sample=False, pad_token_id=policy.pad_id
        )
        try:
            with policy.autocast():
                model.generate(
                    input_ids=ids_BL,
                    attention_mask=mask_BL.long(),
                    logits_processor=LogitsProcessorList([self._choose]),
                    stopping_criteria=StoppingCriteriaList([self._have_ended]),
                )
        finally:
            model.generation_config = usual

    def group(self, number: int) -> list[Completion]:
        size = self.settings.group_size
        rows = range(number * size, (number + 1) * size)
        return [self.ends.completion(self.token_ids[row], self.logprobs[row]) for row in rows]

    def _choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token of every row and mask all others; tokens after a row's end are not kept."""
        self.tick()
        uniform_B1 = self.uniform_BT[:, self.step, None].to(scores.device)
        token_B1, logprob_B1 = draw_tokens(scores.clone(), uniform_B1, self.settings.temperature, self.settings.top_p)
        self.step += 1
        for row, (token, logprob) in enumerate(zip(token_B1[:, 0].tolist(), logprob_B1[:, 0].tolist(), strict=True)):
            if not self.ended_B[row]:
                self.token_ids[row].append(token)
                self.logprobs[row].append(logprob)
                self.ended_B[row] = self.ends.reached(self.token_ids[row])
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)

    def _have_ended(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return self.ended_B.to(input_ids.device)
