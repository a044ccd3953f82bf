"""Sampling completions with a transformers model: one prefill a prompt, shared by its G completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion, FinishReason


@dataclass(frozen=True)
class SamplingSettings:
    """``temperature`` 0 decodes greedily. ``batch_size`` is the number of sequences decoded at once."""

    group_size: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 256


def sample(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    settings: SamplingSettings,
    seeds: Sequence[int],
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, list[Completion]]]:
    """Yield (index of the prompt, its G completions), batch by batch as they finish, shortest prompts first.

    Each group draws its uniform numbers from its own seed, one a token, and turns them into tokens by inverting the
    cumulative distribution: what is sampled does not depend on how prompts are batched or ordered, up to rounding.

    Log-probabilities are of the tempered distribution before top-p truncation: with ``top_p < 1`` the samples are
    slightly off-policy with respect to them, by the mass that was cut off.

    ``tick`` is called once a token; what it raises ends sampling.
    """
    order = sorted(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    prompts_at_once = max(1, settings.batch_size // settings.group_size)
    for start in range(0, len(order), prompts_at_once):
        chosen = order[start : start + prompts_at_once]
        groups = _Decoder(policy, settings, tick).run([prompt_ids[i] for i in chosen], [seeds[i] for i in chosen])
        yield from zip(chosen, groups, strict=True)


class _Decoder:
    """Decodes one batch of groups; B = prompts × G rows, of which finished ones are dropped along the way."""

    def __init__(self, policy: Policy, settings: SamplingSettings, tick: Callable[[], None]) -> None:
        self.policy = policy
        self.settings = settings
        self.tick = tick
        self.eos = torch.tensor(policy.eos_ids, device=policy.device)

    @torch.inference_mode()
    def run(self, prompt_ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[Completion]]:
        group_size, limit = self.settings.group_size, self.settings.max_new_tokens
        logits_BV, cache, mask_BL = self._prefill(prompt_ids)
        uniform_BT = torch.cat([_uniforms(seed, group_size, limit) for seed in seeds]).to(self.policy.device)
        rows = len(uniform_BT)
        tokens_BT = torch.zeros(rows, limit, dtype=torch.long, device=self.policy.device)
        logprobs_BT = torch.zeros(rows, limit, device=self.policy.device)
        length_B = torch.full((rows,), limit, device=self.policy.device)
        position_B = mask_BL.sum(dim=1)
        alive = torch.arange(rows, device=self.policy.device)  # the rows of the full batch still in the cache
        for t in range(limit):
            self.tick()
            token_B, logprob_B = _choose(logits_BV, uniform_BT[alive, t], self.settings)
            tokens_BT[alive, t], logprobs_BT[alive, t] = token_B, logprob_B
            stopped_B = torch.isin(token_B, self.eos) & (length_B[alive] == limit)
            length_B[alive[stopped_B]] = t + 1
            going_B = (length_B[alive] == limit) if t + 1 < limit else torch.zeros_like(stopped_B)
            going = int(going_B.sum())
            if going == 0:
                break
            if going <= len(alive) // 2:
                kept = going_B.nonzero().squeeze(1)
                cache.batch_select_indices(kept)
                alive, token_B, position_B, mask_BL = alive[kept], token_B[kept], position_B[kept], mask_BL[kept]
            mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=1)
            logits_BV = self._step(token_B, mask_BL, position_B, cache)
            position_B = position_B + 1
        return self._collect(tokens_BT, logprobs_BT, length_B)

    def _prefill(self, prompt_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Any, Tensor]:
        """Last logits [B, V], cache and attention mask [B, L] after the prompts, each repeated G times."""
        width = max(len(ids) for ids in prompt_ids)
        padded = [[self.policy.pad_id] * (width - len(ids)) + list(ids) for ids in prompt_ids]
        mask_PL = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids])
        mask_PL = mask_PL.to(self.policy.device)
        with self.policy.autocast():
            output = self.policy.causal_lm(
                input_ids=torch.tensor(padded, device=self.policy.device),
                attention_mask=mask_PL,
                position_ids=(mask_PL.cumsum(dim=1) - 1).clamp_min(0),
                use_cache=True,
                logits_to_keep=1,
            )
        cache = output.past_key_values
        if not hasattr(cache, "batch_repeat_interleave"):
            raise InputError(
                f"model.name: its cache ({type(cache).__name__}) cannot be shared by a group's completions"
            )
        cache.batch_repeat_interleave(self.settings.group_size)
        logits_BV = output.logits[:, -1].repeat_interleave(self.settings.group_size, dim=0)
        return logits_BV, cache, mask_PL.repeat_interleave(self.settings.group_size, dim=0)

    def _step(self, token_B: Tensor, mask_BL: Tensor, position_B: Tensor, cache: Any) -> Tensor:
        with self.policy.autocast():
            output = self.policy.causal_lm(
                input_ids=token_B[:, None],
                attention_mask=mask_BL,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV

    def _collect(self, tokens_BT: Tensor, logprobs_BT: Tensor, length_B: Tensor) -> list[list[Completion]]:
        eos = set(self.policy.eos_ids)
        completions = []
        rows = zip(tokens_BT.tolist(), logprobs_BT.tolist(), length_B.tolist(), strict=True)
        for tokens, logprobs, length in rows:
            ids = tokens[:length]
            reason: FinishReason = "stop" if ids[-1] in eos else "length"
            text = self.policy.decode(ids[:-1] if reason == "stop" else ids)
            completions.append(Completion(ids, logprobs[:length], text, reason))
        size = self.settings.group_size
        return [completions[i : i + size] for i in range(0, len(completions), size)]


def _uniforms(seed: int, group_size: int, limit: int) -> Tensor:
    return torch.rand(group_size, limit, generator=torch.Generator().manual_seed(seed))


def _choose(logits_BV: Tensor, uniform_B: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """One token a row, and its log-probability under the tempered distribution."""
    if settings.temperature == 0:
        logprob_BV = torch.log_softmax(logits_BV.float(), dim=-1)
        token_B = logprob_BV.argmax(dim=-1)
    else:
        logprob_BV = torch.log_softmax(logits_BV.float() / settings.temperature, dim=-1)
        token_B = _invert(_truncate(logprob_BV.exp(), settings.top_p), uniform_B)
    return token_B, logprob_BV.gather(1, token_B[:, None]).squeeze(1)


def _invert(weight_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds uniform · total; never one of weight 0."""
    # In double precision: parallel sums on a GPU are not monotone to the last digit, and a token of weight 0 must not
    # slip into such a gap.
    cumulative_BV = weight_BV.cumsum(dim=-1, dtype=torch.float64)
    total_B = cumulative_BV[:, -1]
    # Rounding may lift uniform · total to the total itself, which no token exceeds.
    threshold_B = torch.minimum(uniform_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    token_B1 = torch.searchsorted(cumulative_BV, threshold_B[:, None], right=True)
    # Not-a-number logits compare as nothing: keep the index valid and let the learner's alarm speak.
    return token_B1.squeeze(1).clamp_max(weight_BV.shape[1] - 1)


def _truncate(probability_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of most likely tokens whose probability reaches ``top_p``."""
    if top_p == 1.0:
        return probability_BV
    descending_BV, order_BV = probability_BV.sort(dim=-1, descending=True)
    before_BV = descending_BV.cumsum(dim=-1) - descending_BV
    return probability_BV.masked_fill(torch.zeros_like(order_BV).bool().scatter(1, order_BV, before_BV >= top_p), 0.0)
