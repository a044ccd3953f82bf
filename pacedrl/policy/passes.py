"""Forward passes over completions: packed into micro-batches, and log-probabilities without gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion, Prompt

PADDED_ROWS_PER_TOKEN = 16
"""Number of padded queries or keys that take the memory of one token. In a layer with autocast, a token saves about 75
bytes per unit of width (`pacedrl.policy.memory`), a query with its output or a key with its value 4."""
MASK_ELEMENTS_PER_TOKEN = 2**16
"""Number of elements of an attention mask that take the memory of one token: 2 bytes each, against about 115 KiB of a
token in a model of 1.5B parameters."""


@dataclass
class Pass:
    """The size of one forward and backward pass over completions that share their prompts.

    ``tokens`` are those of the distinct prompts and of all completions. ``queries`` is the length of the longest
    completion and ``keys`` that of the longest prompt with its completion.
    """

    tokens: int = 0
    rows: int = 0
    queries: int = 0
    keys: int = 0

    def with_sequence(self, prompt: int, completion: int, new_prompt: bool) -> Pass:
        """Return the pass with one more completion; its prompt adds tokens only if it is new to the pass."""
        return Pass(
            self.tokens + completion + prompt * new_prompt,
            self.rows + 1,
            max(self.queries, completion),
            max(self.keys, prompt + completion),
        )

    def cost(self, padded: bool) -> float:
        """Return the memory of the pass in units of a token's.

        Attention that is ``padded`` (`pacedrl.policy.attention.shared_prefix`) pads its queries and keys to the longest
        and makes a mask of all pairs of them. Other attention adds nothing.
        """
        if not padded:
            return self.tokens
        pairs = self.rows * self.queries * self.keys
        rectangle = self.rows * (self.queries + self.keys)
        return self.tokens + rectangle / PADDED_ROWS_PER_TOKEN + pairs / MASK_ELEMENTS_PER_TOKEN


def micro_batches(
    batch: Sequence[Completion], token_budget: float, shared_prompts: bool, padded: bool = True
) -> list[list[int]]:
    """Group the indices of ``batch`` into micro-batches that cost at most ``token_budget``, or of a single sequence.

    With ``shared_prompts`` a micro-batch costs its `Pass.cost`, and the completions of one prompt stay together.
    Without, it costs its rows padded to the longest one, and sequences of similar length stay together.
    """
    if not shared_prompts:
        return padded_batches([sequence.length for sequence in batch], token_budget)
    groups: list[list[int]] = []
    current = Pass()
    last: Sequence[int] | None = None
    for i in sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt_ids), *batch[i].prompt_ids, batch[i].length)):
        lengths = len(batch[i].prompt_ids), len(batch[i].token_ids)
        longer = current.with_sequence(*lengths, new_prompt=batch[i].prompt_ids != last)
        if groups and longer.cost(padded) <= token_budget:
            groups[-1].append(i)
            current = longer
        else:
            groups.append([i])
            current = Pass().with_sequence(*lengths, new_prompt=True)
        last = batch[i].prompt_ids
    return groups


def pass_cost(batch: Sequence[Completion], shared_prompts: bool, padded: bool = True) -> float:
    """Return what a micro-batch costs in the units of `micro_batches`, which made it."""
    if not shared_prompts:
        return len(batch) * max((sequence.length for sequence in batch), default=0)
    whole = Pass()
    last: Sequence[int] | None = None
    for sequence in batch:
        new_prompt = sequence.prompt_ids != last
        whole = whole.with_sequence(len(sequence.prompt_ids), len(sequence.token_ids), new_prompt)
        last = sequence.prompt_ids
    return whole.cost(padded)


def model_passes(policy: Policy, batch: Sequence[Completion], token_budget: float, ranks: Ranks) -> Iterator[list[int]]:
    """Yield the `micro_batches` of this process; with a sharded policy all processes make as many passes."""
    groups = micro_batches(batch, token_budget, policy.takes_patterns, policy.pads_attention)
    passes = max(ranks.gather(len(groups))) if policy.sharded else len(groups)
    yield from groups
    for _ in range(passes - len(groups)):
        policy.dummy_pass()


def padded_batches(lengths: Sequence[int], token_budget: float) -> list[list[int]]:
    """Group sequences by similar length; each group, padded, has at most ``token_budget`` tokens or one sequence."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= token_budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@torch.no_grad()
def sequence_logprobs(
    policy: Policy,
    batch: Sequence[Completion],
    temperature: float,
    token_budget: float,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> list[list[float]]:
    """Compute log π of every completion token: one list per sequence, in the order given.

    ``tick`` is called before each micro-batch. The ``ranks`` divide the work, and all of them get the whole result.

    Raises InputError if the memory is too small even for one sequence.
    """
    ranks = ranks or Ranks()
    own = batch[ranks.own_slice([sequence.length for sequence in batch])]
    logprobs: list[list[float]] = [[]] * len(own)
    for rows in model_passes(policy, own, token_budget, ranks):
        tick()
        for i, row in zip(rows, _pass_logprobs(policy, [own[i] for i in rows], temperature), strict=True):
            logprobs[i] = row
    return [row for part in ranks.gather(logprobs) for row in part]


def _pass_logprobs(policy: Policy, batch: Sequence[Completion], temperature: float) -> list[list[float]]:
    """Compute log π of every completion token in one pass or, if a GPU runs out of memory, in two of half the size."""
    with suppress(torch.OutOfMemoryError):
        logprobs_BT, _, _ = policy.logprobs(
            [sequence.prompt_ids for sequence in batch], [sequence.token_ids for sequence in batch], temperature
        )
        return [row[: len(c.token_ids)] for row, c in zip(logprobs_BT.tolist(), batch, strict=True)]
    # Only here, because the exception kept the tensors of the failed pass.
    torch.cuda.empty_cache()  # does nothing without a GPU
    if policy.sharded or len(batch) == 1:  # a sharded policy cannot try again, because other processes wait for it
        raise InputError(
            "log-probabilities do not fit into memory: lower optimizer.tokens_per_micro_batch or "
            "sampling.max_new_tokens, or set scale.shard=true on several GPUs"
        )
    half = len(batch) // 2
    return [row for part in (batch[:half], batch[half:]) for row in _pass_logprobs(policy, part, temperature)]


def true_accuracies(
    policy: Policy,
    prompts: Sequence[Prompt],
    temperature: float,
    token_budget: int,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
    stop: Sequence[str] = (),
) -> list[float]:
    """Compute the probability of each prompt's one right answer, the accuracy that sampling estimates with noise.

    It holds for the verifier ``exact`` and untruncated sampling. It counts the answer as the tokenizer writes it,
    followed by any end token, including those in ``stop``. Other token sequences that decode to the same text, such as
    those with surrounding spaces, are missed. So it is a lower bound, which is tight if the tokenizer has one way to
    write the answer.
    """
    batch = []
    end_ids = policy.ends(stop).token_ids
    for prompt in prompts:
        answer = policy.tokenizer(str(prompt.answer).strip(), add_special_tokens=False).input_ids
        for end in end_ids:
            batch.append(Completion([*answer, end], [], key=prompt.key, prompt_ids=prompt.token_ids))
    logprobs = sequence_logprobs(policy, batch, temperature, token_budget, tick, ranks)
    log_probability_N = torch.tensor([sum(row) for row in logprobs], dtype=torch.float64)
    return [float(p) for p in log_probability_N.exp().view(len(prompts), len(end_ids)).sum(dim=1)]
