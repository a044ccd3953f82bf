"""Sampling through a model's own cache, whatever it holds, by transformers' `generate`: one batch after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from pacedrl.policy.draw import draw_tokens, uniforms
from pacedrl.types import Completion

if TYPE_CHECKING:
    from pacedrl.policy.policy import Policy
    from pacedrl.policy.sampler import SamplingSettings


def generate_groups(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    settings: SamplingSettings,
    seeds: Sequence[int],
    tick: Callable[[], None],
    padded: bool,
) -> Iterator[tuple[int, list[Completion]]]:
    """As `pacedrl.policy.sampler.sample`, which says what is drawn and in which order.

    All rows of a batch are decoded until its last one has ended. ``padded``: whether prompts of different lengths may
    share a batch, shorter ones padded on the left. Models whose state or positions padding would change need prompts
    of one length.
    """
    longest_first = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    same = [longest_first] if padded else [list(g) for _, g in groupby(longest_first, lambda i: len(prompt_ids[i]))]
    at_once = max(1, settings.batch_size // settings.group_size)
    for prompts in same:
        for start in range(0, len(prompts), at_once):
            batch = prompts[start : start + at_once]
            draws = _Draws(policy, settings, [seeds[i] for i in batch], tick)
            _generate(policy, [prompt_ids[i] for i in batch for _ in range(settings.group_size)], draws, settings)
            completions = draws.completions()
            for number, i in enumerate(batch):
                yield i, completions[number * settings.group_size :][: settings.group_size]


def _generate(policy: Policy, rows: Sequence[Sequence[int]], draws: _Draws, settings: SamplingSettings) -> None:
    width = max(map(len, rows))
    ids_BL = torch.tensor([[policy.pad_id] * (width - len(ids)) + list(ids) for ids in rows], device=policy.device)
    length_B1 = torch.tensor([[len(ids)] for ids in rows], device=policy.device)
    mask_BL = torch.arange(width, device=policy.device) >= width - length_B1
    # Nothing of the model's own settings, such as a repetition penalty: they would change what is drawn.
    plain = GenerationConfig(max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=policy.pad_id)
    with policy.autocast(), _settings(policy.causal_lm, plain):
        policy.causal_lm.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL.long(),
            logits_processor=LogitsProcessorList([_Chooses(draws)]),
            stopping_criteria=StoppingCriteriaList([_Stops(draws)]),
        )


@contextmanager
def _settings(causal_lm: Any, settings: GenerationConfig) -> Iterator[None]:
    usual, causal_lm.generation_config = causal_lm.generation_config, settings
    try:
        yield
    finally:
        causal_lm.generation_config = usual


class _Draws:
    """The tokens that the rows of one batch have drawn so far, G rows a prompt."""

    def __init__(
        self, policy: Policy, settings: SamplingSettings, seeds: Sequence[int], tick: Callable[[], None]
    ) -> None:
        self.settings = settings
        self.tick = tick
        self.ends = policy.ends(settings.stop)
        self.uniform_BT = torch.cat([uniforms(seed, settings.group_size, settings.max_new_tokens) for seed in seeds])
        self.token_ids: list[list[int]] = [[] for _ in self.uniform_BT]
        self.logprobs: list[list[float]] = [[] for _ in self.uniform_BT]
        self.ended_B = torch.zeros(len(self.uniform_BT), dtype=torch.bool)
        self.step = 0

    def draw(self, logits_BV: Tensor) -> Tensor:
        """The next token of every row, [B]; those that rows draw after their end are not kept."""
        self.tick()
        uniform_B1 = self.uniform_BT[:, self.step, None].to(logits_BV.device)
        token_B1, logprob_B1 = draw_tokens(logits_BV, uniform_B1, self.settings.temperature, self.settings.top_p)
        self.step += 1
        drawn = zip(token_B1[:, 0].tolist(), logprob_B1[:, 0].tolist(), strict=True)
        for row, (token, logprob) in enumerate(drawn):
            if not self.ended_B[row]:
                self.token_ids[row].append(token)
                self.logprobs[row].append(logprob)
                self.ended_B[row] = self.ends.reached(self.token_ids[row])
        return token_B1[:, 0]

    def completions(self) -> list[Completion]:
        return [self.ends.completion(ids, row) for ids, row in zip(self.token_ids, self.logprobs, strict=True)]


class _Chooses(LogitsProcessor):  # type: ignore[misc]
    """Leaves `generate` the token that was drawn, and no other."""

    def __init__(self, draws: _Draws) -> None:
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_B = self.draws.draw(scores.clone())
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B[:, None], 0.0)


class _Stops(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, draws: _Draws) -> None:
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return self.draws.ended_B.to(input_ids.device)
