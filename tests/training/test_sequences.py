"""How a batch is cut into micro-batches."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pacedrl.training.sequences import TrainingSequence, micro_batches


def sized(length: int) -> TrainingSequence:
    return TrainingSequence([1] * (length // 2), [1] * (length - length // 2), 0.0, None)


@given(st.lists(st.integers(2, 60), max_size=30), st.integers(1, 200))
def test_micro_batches_partition_the_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    batch = [sized(length) for length in lengths]
    groups = micro_batches(batch, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(batch)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget
    for group, following in itertools.pairwise(groups):
        shortest = min(lengths[i] for i in following)
        assert max(lengths[i] for i in group) <= shortest  # similar lengths together
        assert (len(group) + 1) * shortest > budget  # and as many as fit
