"""Sampling with transformers' `generate` and the model's own cache, whatever that holds: one batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from pacedrl.policy.draw import draw_tokens, uniforms
from pacedrl.policy.transfer import read_back
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
    size = settings.group_size
    at_once = max(1, settings.batch_size // size)
    for prompts in same:
        for start in range(0, len(prompts), at_once):
            batch = prompts[start : start + at_once]
            uniform_BT = torch.cat([uniforms(seeds[i], size, settings.max_new_tokens) for i in batch])
            rows = [prompt_ids[i] for i in batch for _ in range(size)]
            completions = _generate(policy, settings, rows, uniform_BT, tick)
            for number, i in enumerate(batch):
                yield i, completions[number * size : (number + 1) * size]


def _generate(
    policy: Policy, settings: SamplingSettings, prompts: TokenLists, uniform_BT: Tensor, tick: Tick
) -> list[Completion]:
    """Decode one completion for each of the prompts together."""
    model, ends = policy.causal_lm, policy.ends(settings.stop)
    ids_BL, mask_BL = policy.padded(prompts, side="left")
    token_ids: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended_B = torch.zeros(len(prompts), dtype=torch.bool)
    uniform_BT = uniform_BT.to(policy.device, non_blocking=True)

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw the next token of every row and mask all others; tokens after a row's end are not kept."""
        tick()
        uniform_B1 = uniform_BT[:, input_ids.shape[1] - ids_BL.shape[1], None]
        token_B1, logprob_B1 = draw_tokens(scores.clone(), uniform_B1, settings.temperature, settings.top_p)
        for row, (token, logprob) in enumerate(zip(*read_back(token_B1[:, 0], logprob_B1[:, 0]), strict=True)):
            if not ended_B[row]:
                token_ids[row].append(token)
                logprobs[row].append(logprob)
                ended_B[row] = ends.reached(token_ids[row])
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)

    def have_ended(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return ended_B.to(input_ids.device, non_blocking=True)

    usual = model.generation_config
    # The model's own settings, such as a repetition penalty, would change the distribution.
    model.generation_config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=policy.pad_id
    )
    try:
        with policy.autocast():
            model.generate(
                input_ids=ids_BL,
                attention_mask=mask_BL.long(),
                logits_processor=LogitsProcessorList([choose]),
                stopping_criteria=StoppingCriteriaList([have_ended]),
            )
    finally:
        model.generation_config = usual
    return list(map(ends.completion, token_ids, logprobs))
