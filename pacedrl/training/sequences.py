"""Completions to train on, packed into micro-batches, and their log-probabilities without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pacedrl.distributed.ranks import Ranks
from pacedrl.policy.policy import Policy
from pacedrl.types import Prompt


@dataclass(frozen=True)
class TrainingSequence:
    """A completion to train on.

    ``advantage`` is what the objective makes of the reward: r/β − log Z(x) for trajectory balance.
    ``anchor_logprobs`` is the log-probability of each token under μ; None takes the current policy's own at the start
    of the step. ``reference_logprobs`` are the initial policy's, for the objectives that read them.
    ``sampler_logprobs`` is what the gap between sampler and trainer is measured against: ``anchor_logprobs`` unless
    given.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    advantage: float
    anchor_logprobs: Sequence[float] | None
    replayed: bool = False
    reference_logprobs: Sequence[float] | None = None
    sampler_logprobs: Sequence[float] | None = None

    @property
    def mean_reference_log_ratio(self) -> float:
        """mean_t(log μ − log π_ref), 0 without a reference."""
        if self.anchor_logprobs is None or self.reference_logprobs is None:
            return 0.0
        return (sum(self.anchor_logprobs) - sum(self.reference_logprobs)) / len(self.completion_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def micro_batches(batch: Sequence[TrainingSequence], token_budget: int, shared_prompts: bool) -> list[list[int]]:
    """Indices in groups of which each costs the model at most ``token_budget`` tokens, or is a single sequence.

    With ``shared_prompts`` a group costs its distinct prompts and its completions, and those of one prompt stay
    together; without, its rows padded to the longest, and similar lengths stay together.
    """
    return _packed(batch, token_budget) if shared_prompts else _padded(batch, token_budget)


def model_passes(
    policy: Policy, batch: Sequence[TrainingSequence], token_budget: int, ranks: Ranks
) -> Iterator[list[int]]:
    """`micro_batches` of this process. Where the policy is split, as many passes on every process as on the busiest."""
    groups = micro_batches(batch, token_budget, policy.takes_patterns)
    passes = max(ranks.gather(len(groups))) if policy.sharded else len(groups)
    yield from groups
    for _ in range(passes - len(groups)):
        policy.keep_in_step()


def _packed(batch: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    groups: list[list[int]] = []
    used = 0
    last: Sequence[int] | None = None
    for i in sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt_ids), *batch[i].prompt_ids, len(batch[i]))):
        sequence = batch[i]
        added = len(sequence.completion_ids) if sequence.prompt_ids == last else len(sequence)
        if groups and used + added <= token_budget:
            groups[-1].append(i)
            used += added
        else:
            groups.append([i])
            used = len(sequence)
        last = sequence.prompt_ids
    return groups


def _padded(batch: Sequence[TrainingSequence], token_budget: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in sorted(range(len(batch)), key=lambda i: len(batch[i])):
        if groups and (len(groups[-1]) + 1) * len(batch[i]) <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@torch.no_grad()
def sequence_logprobs(
    policy: Policy,
    batch: Sequence[TrainingSequence],
    temperature: float,
    token_budget: int,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> list[list[float]]:
    """log π of every completion token, one list a sequence, in the order given.

    ``tick`` is called before each micro-batch. ``ranks``: the processes that share the work, and all get its result.
    """
    ranks = ranks or Ranks()
    own = batch[ranks.part([len(sequence) for sequence in batch])]
    logprobs: list[list[float]] = [[]] * len(own)
    for rows in model_passes(policy, own, token_budget, ranks):
        tick()
        part = [own[i] for i in rows]
        logprobs_BT, _, _ = policy.logprobs(
            [sequence.prompt_ids for sequence in part], [sequence.completion_ids for sequence in part], temperature
        )
        for i, row in zip(rows, logprobs_BT.tolist(), strict=True):
            logprobs[i] = row[: len(own[i].completion_ids)]
    return [row for part in ranks.gather(logprobs) for row in part]


def true_accuracies(
    policy: Policy,
    prompts: Sequence[Prompt],
    prompt_ids: Mapping[str, list[int]],
    temperature: float,
    token_budget: int,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
    stop: Sequence[str] = (),
) -> list[float]:
    """The probability of each prompt's one right answer: the accuracy that sampling estimates, without its noise.

    For the verifier ``exact`` and untruncated sampling. Counts the answer as the tokenizer writes it, ended by any of
    the end tokens, those among ``stop`` included; other token sequences that decode to the same text (surrounding
    spaces among them) are missed, so it is a lower bound, and a tight one where the tokenizer has one way to write the
    answer.
    """
    batch = []
    end_ids = policy.ends(stop).token_ids
    for prompt in prompts:
        answer = policy.tokenizer(str(prompt.answer).strip(), add_special_tokens=False).input_ids
        for end in end_ids:
            batch.append(TrainingSequence(prompt_ids[prompt.key], [*answer, end], 0.0, None))
    logprobs = sequence_logprobs(policy, batch, temperature, token_budget, tick, ranks)
    log_probability_N = torch.tensor([sum(row) for row in logprobs], dtype=torch.float64)
    return [float(p) for p in log_probability_N.exp().view(len(prompts), len(end_ids)).sum(dim=1)]
