"""Sampling with a transformers model: one prefill per prompt, continuous batching, preallocated caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from pacedrl.distributed.sharding import whole
from pacedrl.policy.attention import attention
from pacedrl.policy.cache import ColumnCache, no_columns, states_of
from pacedrl.policy.cpu import packed_weights
from pacedrl.policy.draw import draw_tokens, uniforms
from pacedrl.policy.generate import generate_groups
from pacedrl.policy.half import half_weights
from pacedrl.policy.shared_prompts import PromptCache, SharedPromptPattern
from pacedrl.policy.transfer import read_back
from pacedrl.types import Completion

if TYPE_CHECKING:
    from pacedrl.policy.decoding import Decoding
    from pacedrl.policy.policy import Policy

Tick = Callable[[], None]
"""Called repeatedly during a long operation; an exception in it ends the operation."""
TokenLists = Sequence[Sequence[int]]
"""Token ids of several prompts."""
SampledGroups = Iterator[tuple[int, list[Completion]]]
"""(Index of the prompt, its G completions), as groups finish."""

COLUMNS_AHEAD = 256
"""New tokens for which the cache has room at first; it doubles when a completion is longer."""


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled.

    ``temperature`` 0 decodes greedily. ``batch_size`` is the number of sequences decoded at once. A completion ends at
    each string in ``stop`` as well as at the model's own end tokens and strings (`Policy.ends`).
    """

    group_size: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 256
    stop: tuple[str, ...] = ()


class Sampler(Protocol):
    """Samples completions: `TransformersSampler`, `VllmSampler` or `VllmServerSampler`."""

    def sync(self, policy: Policy, tick: Tick = lambda: None) -> None:
        """Sample from these weights from now on. ``tick`` is called while servers are waited for."""

    def rest(self) -> None:
        """Free the device's memory if the sampler occupies much of it. Nothing is sampled until the next `sync`."""
        return

    def sample(
        self, prompt_ids: TokenLists, settings: SamplingSettings, seeds: Sequence[int], tick: Tick = lambda: None
    ) -> SampledGroups:
        """Sample a group for each prompt, each with its own seed."""


class TransformersSampler(Sampler):
    """Samples from the policy itself, or from a copy that only `sync` changes."""

    def __init__(self, policy: Policy, own_copy: bool = False) -> None:
        self.policy = policy.frozen_copy() if own_copy else policy

    @torch.no_grad()
    def sync(self, policy: Policy, tick: Tick = lambda: None) -> None:
        if policy is not self.policy:
            for own, new in zip(self.policy.model.parameters(), policy.model.parameters(), strict=True):
                own.copy_(whole(new))

    def sample(
        self, prompt_ids: TokenLists, settings: SamplingSettings, seeds: Sequence[int], tick: Tick = lambda: None
    ) -> SampledGroups:
        return sample(self.policy, prompt_ids, settings, seeds, tick)


def sample(
    policy: Policy,
    prompt_ids: TokenLists,
    settings: SamplingSettings,
    seeds: Sequence[int],
    tick: Tick = lambda: None,
    decoding: Decoding | None = None,
) -> SampledGroups:
    """Sample a group for each prompt; the longest prompts start first.

    Each group has its own seed, from which it draws one uniform number per token, and inverts the cumulative
    distribution. The samples therefore do not depend on how prompts are batched or ordered, up to rounding.

    Log-probabilities are those of the tempered distribution before top-p truncation. With ``top_p < 1`` the samples are
    slightly off-policy with respect to them, by the probability that was cut off.

    ``tick`` is called once per token. ``decoding`` replaces `Policy.decoding`, even if it is wrong for the model; it is
    meant for trying a few tokens, so no weights are copied to make sampling faster.

    Raises InputError for a model that cannot be sampled from (`pacedrl.policy.decoding`).
    """
    copies = nullcontext() if decoding else _sampling_weights(policy, settings.batch_size)
    decoding = decoding or policy.decoding
    with copies:
        if decoding != "columns":
            yield from generate_groups(policy, prompt_ids, settings, seeds, tick, padded=decoding == "padded")
            return
        decoder = _Decoder(policy, prompt_ids, settings, seeds, tick)
        while decoder.waiting or decoder.rows:
            yield from decoder.advance()


def _sampling_weights(policy: Policy, rows: int) -> AbstractContextManager[None]:
    """Keep the copies of the weights that make sampling ``rows`` tokens at a time fast, until sampling ends."""
    return half_weights(policy.causal_lm) if policy.mixed_precision else packed_weights(policy.causal_lm, rows)


@dataclass
class _Row:
    """A completion that is being decoded."""

    prompt: int
    member: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class _Decoder:
    """Decodes rows by continuous batching. A finished row leaves at once; groups that wait join when there is room."""

    def __init__(
        self, policy: Policy, prompt_ids: TokenLists, settings: SamplingSettings, seeds: Sequence[int], tick: Tick
    ) -> None:
        self.policy = policy
        self.prompt_ids = prompt_ids
        self.settings = settings
        self.ends = policy.ends(settings.stop)
        self.seeds = seeds
        self.tick = tick
        # Longest first, so that a prompt that joins later fits into the columns already in use.
        self.waiting = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
        self.groups_at_once = max(1, settings.batch_size // settings.group_size)
        groups = min(self.groups_at_once, len(prompt_ids))
        capacity = groups * settings.group_size
        longest = max((len(ids) for ids in prompt_ids), default=0)
        ahead = min(settings.max_new_tokens, COLUMNS_AHEAD)
        self.prompts = PromptCache(groups, longest, policy.device) if policy.shares_prompts else None
        self.cache = ColumnCache(capacity, ahead if self.prompts else longest + ahead, policy.device)
        self.begun: list[int] = []
        """The prompts whose keys and values are in ``prompts``, in the same order."""
        self.pattern: SharedPromptPattern | None = None
        """The pattern of the last step; None if rows or prompts have changed since."""
        self.rows: list[_Row] = []
        # Every step needs these tensors, so they stay on the device. They have one entry per row, which moves with it.
        self.token_B, self.position_B, self.drawn_B = torch.zeros(3, capacity, dtype=torch.long, device=policy.device)
        self.uniform_BT = torch.zeros(capacity, settings.max_new_tokens, device=policy.device)
        self.cache.row_states += [self.token_B, self.position_B, self.drawn_B, self.uniform_BT]
        self.done: dict[int, list[Completion | None]] = {}

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, list[Completion]]]:
        """Start new groups if there is room, else decode one token of every row. Returns the complete groups."""
        self.tick()
        room = self.groups_at_once - -(-len(self.rows) // self.settings.group_size)
        enough = min(len(self.waiting), -(-self.groups_at_once // 4)) if self.rows else 1
        if self.waiting and room >= enough:
            return self._record(*self._begin(self.waiting[:room]))
        return self._record(0, *self._step())

    def _begin(self, prompts: Sequence[int]) -> tuple[int, Tensor, Tensor]:
        """Prefill prompts and add their rows. Returns the first new row, the first tokens and log-probabilities."""
        self.waiting = self.waiting[len(prompts) :]
        lengths = [len(self.prompt_ids[i]) for i in prompts]
        ids_PL, mask_PL = self.policy.padded([self.prompt_ids[i] for i in prompts], side="left")
        prefilled = DynamicCache()
        position_PL = (mask_PL.cumsum(dim=1) - 1).clamp_min(0)
        logits_PV = self.policy.next_logits(ids_PL, mask_PL.long(), position_PL, prefilled)
        size, before, states = self.settings.group_size, len(self.rows), states_of(prefilled, ids_PL.shape[1])
        with self.policy.autocast():
            if self.prompts is not None:
                self.prompts.insert(states, lengths)
                self.begun += prompts
                self.pattern = None
                states, lengths = no_columns(states), [0] * len(prompts)
            self.cache.insert(states, lengths, size)
        self.rows += [_Row(i, member) for i in prompts for member in range(size)]
        self.done |= {i: [None] * size for i in prompts}
        rows = slice(before, len(self.rows))
        uniform_BT = torch.cat([uniforms(self.seeds[i], size, self.settings.max_new_tokens) for i in prompts])
        self.uniform_BT[rows].copy_(uniform_BT, non_blocking=True)
        self.drawn_B[rows] = 1
        self.position_B[rows] = (position_PL[:, -1] + 1).repeat_interleave(size)
        token_PG, logprob_PG = self._draw(logits_PV, self.uniform_BT[rows, 0].view(-1, size))
        return before, token_PG.flatten(), logprob_PG.flatten()

    def _step(self) -> tuple[Tensor, Tensor]:
        """Return the next token of every row and its log-probability."""
        cache, count = self.cache, len(self.rows)
        cache.make_room()
        mask_BL = cache.token_mask()
        self.pattern = self._pattern(mask_BL)
        mask = mask_BL.long() if self.pattern is None else None
        with attention(self.policy.config, self.pattern):
            logits_BV = self.policy.next_logits(
                self.token_B[:count, None], mask, self.position_B[:count, None], cache.cache
            )
        cache.end += 1
        token_B1, logprob_B1 = self._draw(logits_BV, self.uniform_BT[:count].gather(1, self.drawn_B[:count, None]))
        self.position_B[:count] += 1
        self.drawn_B[:count] += 1
        return token_B1.squeeze(1), logprob_B1.squeeze(1)

    def _pattern(self, mask_BL: Tensor) -> SharedPromptPattern | None:
        """Return the pattern by which the rows attend; None if each row has a copy of its prompt."""
        if self.prompts is None:
            return None
        if self.pattern is not None:
            return self.pattern.with_columns(mask_BL)
        place = {prompt: i for i, prompt in enumerate(self.begun)}
        return self.prompts.pattern([place[row.prompt] for row in self.rows], mask_BL)

    def _draw(self, logits_RV: Tensor, uniform_RM: Tensor) -> tuple[Tensor, Tensor]:
        return draw_tokens(logits_RV, uniform_RM, self.settings.temperature, self.settings.top_p)

    def _record(self, first: int, token_B: Tensor, logprob_B: Tensor) -> list[tuple[int, list[Completion]]]:
        """Append new tokens to the rows from ``first`` on and remove finished rows. Returns the complete groups."""
        self.token_B[first : len(self.rows)] = token_B
        gone = []
        for i, token, logprob in zip(range(first, len(self.rows)), *read_back(token_B, logprob_B), strict=True):
            row = self.rows[i]
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            if self.ends.reached(row.token_ids) or len(row.token_ids) == self.settings.max_new_tokens:
                self.done[row.prompt][row.member] = self.ends.completion(row.token_ids, row.logprobs)
                gone.append(i)
        finished = {self.rows[i].prompt for i in gone}
        self._remove(gone)
        whole = []
        for prompt in finished:
            group = [completion for completion in self.done[prompt] if completion is not None]
            if len(group) == self.settings.group_size:
                whole.append((prompt, group))
                del self.done[prompt]
                self._forget(prompt)
        return whole

    def _remove(self, gone: list[int]) -> None:
        if not gone:
            return
        self.pattern = None
        places, movers = self.cache.remove(gone)
        for place, mover in zip(places, movers, strict=True):
            self.rows[place] = self.rows[mover]
        del self.rows[self.cache.rows :]

    def _forget(self, prompt: int) -> None:
        """Remove a prompt's keys and values to make room for another."""
        if self.prompts is not None:
            place = self.begun.index(prompt)
            self.prompts.remove(place)
            self.begun[place] = self.begun[-1]
            self.begun.pop()
