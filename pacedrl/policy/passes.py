"""Forward passes over completions: packed into micro-batches, and log-probabilities without gradient."""

from collections.abc import Callable, Iterator, Sequence

import torch

from pacedrl.distributed.ranks import Ranks
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion, Prompt


def micro_batches(batch: Sequence[Completion], token_budget: int, shared_prompts: bool) -> list[list[int]]:
    """Group the indices of ``batch`` into micro-batches of at most ``token_budget`` tokens, or of a single sequence.

    With ``shared_prompts`` a micro-batch costs the tokens of its distinct prompts and of its completions, and the
    completions of one prompt stay together. Without, it costs its rows padded to the longest one, and sequences of
    similar length stay together.
    """
    if not shared_prompts:
        return padded_batches([sequence.length for sequence in batch], token_budget)
    groups: list[list[int]] = []
    used = 0
    last: Sequence[int] | None = None
    for i in sorted(range(len(batch)), key=lambda i: (len(batch[i].prompt_ids), *batch[i].prompt_ids, batch[i].length)):
        sequence = batch[i]
        added = len(sequence.token_ids) if sequence.prompt_ids == last else sequence.length
        if groups and used + added <= token_budget:
            groups[-1].append(i)
            used += added
        else:
            groups.append([i])
            used = sequence.length
        last = sequence.prompt_ids
    return groups


def model_passes(policy: Policy, batch: Sequence[Completion], token_budget: int, ranks: Ranks) -> Iterator[list[int]]:
    """Yield the `micro_batches` of this process; with a sharded policy all processes make as many passes."""
    groups = micro_batches(batch, token_budget, policy.takes_patterns)
    passes = max(ranks.gather(len(groups))) if policy.sharded else len(groups)
    yield from groups
    for _ in range(passes - len(groups)):
        policy.dummy_pass()


def padded_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
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
    token_budget: int,
    tick: Callable[[], None] = lambda: None,
    ranks: Ranks | None = None,
) -> list[list[float]]:
    """Compute log π of every completion token: one list per sequence, in the order given.

    ``tick`` is called before each micro-batch. The ``ranks`` divide the work, and all of them get the whole result.
    """
    ranks = ranks or Ranks()
    own = batch[ranks.own_slice([sequence.length for sequence in batch])]
    logprobs: list[list[float]] = [[]] * len(own)
    for rows in model_passes(policy, own, token_budget, ranks):
        tick()
        part = [own[i] for i in rows]
        logprobs_BT, _, _ = policy.logprobs(
            [sequence.prompt_ids for sequence in part], [sequence.token_ids for sequence in part], temperature
        )
        for i, row in zip(rows, logprobs_BT.tolist(), strict=True):
            logprobs[i] = row[: len(own[i].token_ids)]
    return [row for part in ranks.gather(logprobs) for row in part]


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
