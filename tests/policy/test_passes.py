"""How a batch is cut into micro-batches."""

from __future__ import annotations

import itertools
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.policy.passes import micro_batches, pass_cost, sequence_logprobs, true_accuracies
from pacedrl.policy.policy import Policy
from pacedrl.types import Completion, Prompt


def sized(length: int) -> Completion:
    return Completion([1] * (length - length // 2), [], prompt_ids=[1] * (length // 2))


@given(st.lists(st.integers(2, 60), max_size=30), st.integers(1, 200))
def test_padded_micro_batches_partition_the_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batch = [sized(length) for length in lengths]
    groups = micro_batches(batch, budget, shared_prompts=False)
    assert sorted(i for group in groups for i in group) == list(range(len(batch)))
    for group in groups:
        cost = pass_cost([batch[i] for i in group], shared_prompts=False)
        assert cost == len(group) * max(lengths[i] for i in group)
        assert len(group) == 1 or cost <= budget
    for group, following in itertools.pairwise(groups):
        shortest = min(lengths[i] for i in following)
        assert max(lengths[i] for i in group) <= shortest  # similar lengths together
        assert (len(group) + 1) * shortest > budget  # and as many as fit


PROMPTS = [[1], [2], [1, 1, 1], [3] * 20]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=30), st.integers(1, 80), st.booleans())
def test_packed_micro_batches_count_each_prompt_once(pairs: list[tuple[int, int]], budget: int, padded: bool) -> None:
    batch = [Completion([7] * length, [], prompt_ids=list(PROMPTS[prompt])) for prompt, length in pairs]

    def cost(group: list[int]) -> float:
        prompts = {tuple(batch[i].prompt_ids) for i in group}
        tokens = sum(map(len, prompts)) + sum(len(batch[i].token_ids) for i in group)
        queries, keys = max(len(batch[i].token_ids) for i in group), max(batch[i].length for i in group)
        padding = len(group) * (queries + keys) / 16 + len(group) * queries * keys / 2**16
        return tokens + padding * padded

    groups = micro_batches(batch, budget, shared_prompts=True, padded=padded)
    assert sorted(i for group in groups for i in group) == list(range(len(batch)))
    for group in groups:
        assert len(group) == 1 or cost(group) <= budget
        assert pass_cost([batch[i] for i in group], shared_prompts=True, padded=padded) == pytest.approx(cost(group))
    for group, following in itertools.pairwise(groups):
        assert cost([*group, following[0]]) > budget  # as many as fit
    order = [tuple(batch[i].prompt_ids) for group in groups for i in group]
    assert len(list(itertools.groupby(order))) == len(set(order))  # a prompt's completions together


def test_true_accuracies_count_answers_that_end_at_a_stop_token(policy: Policy) -> None:
    prompt = Prompt("key", "task", "copy:12=", "12", token_ids=policy.encode("copy:12="))
    plain, with_stop = (true_accuracies(policy, [prompt], 1.0, 64, stop=stop) for stop in ([], ["<pad>"]))
    batch = [Completion([*policy.encode("12")[1:], end], [], prompt_ids=prompt.token_ids) for end in (2, 0)]
    by_end, by_stop = (exp(sum(row)) for row in sequence_logprobs(policy, batch, 1.0, 64))
    assert plain == pytest.approx([by_end])
    assert with_stop == pytest.approx([by_end + by_stop])
