"""Gates: which groups are sampled, which are kept, and that all sampled ones are counted."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.config import Config
from pacedrl.config.method import DynamicGateConfig, LiloGateConfig, NoGateConfig
from pacedrl.rollouts.collect import Collected, Collector, collect, expected_to_fill
from pacedrl.types import Completion, Group, Prompt

POOLS = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=3, max_size=3), min_size=4, max_size=24)


class Pool:
    """Prompts whose groups get fixed rewards, handed out in order."""

    def __init__(self, rewards: list[list[float | None]]) -> None:
        self.rewards = {str(i): row for i, row in enumerate(rewards)}
        self.left = list(self.rewards)
        self.asked: list[int] = []

    def take(self, count: int) -> list[str]:
        self.asked.append(count)
        keys, self.left = self.left[:count], self.left[count:]
        return keys

    def rollout(self, keys: list[str]) -> list[Group]:
        return [
            Group(Prompt(key, "t", key, ""), [Completion([2], [-1.0], "", "stop", r) for r in self.rewards[key]])
            for key in keys
        ]

    def collect(self, gate: NoGateConfig | DynamicGateConfig | LiloGateConfig, count: int) -> Collected:
        return collect(gate, count, self.take, self.rollout)


def keys(groups: list[Group]) -> list[str]:
    return [group.prompt.key for group in groups]


def mixed(row: list[float | None]) -> bool:
    return len({reward for reward in row if reward is not None}) > 1


def test_without_a_gate_everything_sampled_is_trained_on() -> None:
    result = Pool([[0.0] * 3, [1.0] * 3, [0.0, 1.0, 1.0]]).collect(NoGateConfig(), 3)
    assert keys(result.kept) == keys(result.sampled) == ["0", "1", "2"]
    assert result.metrics()["gate/kept"] == 3


@given(POOLS, st.integers(1, 6), st.integers(1, 5))
def test_dynamic_sampling(rewards: list[list[float | None]], count: int, max_batches: int) -> None:
    pool = Pool(rewards)
    result = pool.collect(DynamicGateConfig(max_batches=max_batches), count)
    metrics = result.metrics()
    sampled = keys(result.sampled)
    # Everything sampled counts as generated, each prompt once, and is either kept or dropped for a reason.
    assert sampled == list(pool.rewards)[: len(sampled)]
    dropped = sum(value for name, value in metrics.items() if "dropped" in name)
    assert len(sampled) == len(result.kept) + dropped
    # What is kept is the first mixed groups, up to P.
    informative = [key for key in sampled if mixed(pool.rewards[key])]
    assert keys(result.kept) == informative[:count]
    assert metrics["gate/dropped_surplus"] == len(informative[count:])
    # It stops as soon as it may, and says so when it has fewer than P.
    assert result.batches <= max_batches
    assert metrics["gate/capped"] == (len(result.kept) < count)
    if result.capped:
        assert result.batches == max_batches or len(sampled) == len(rewards)
    before_last = sampled[: (result.batches - 1) * count]
    assert sum(mixed(pool.rewards[key]) for key in before_last) < count


def test_reasons_for_dropping() -> None:
    rewards: list[list[float | None]] = [[0.0] * 3, [1.0] * 3, [0.5] * 3, [1.0, None, None], [0.0, 1.0, None]]
    metrics = Pool(rewards).collect(DynamicGateConfig(), 5).metrics()
    for reason in ("all_wrong", "all_right", "all_equal", "unjudged"):
        assert metrics[f"gate/dropped_{reason}"] == 1
    assert (metrics["gate/kept"], metrics["gate/capped"], metrics["gate/batches"]) == (1, 1, 1)


def test_an_adaptive_batch_is_as_large_as_should_fill_the_step() -> None:
    mixed_row: list[float | None] = [0.0, 1.0, 1.0]
    # Of 8 prompts 2 are mixed: 1.25·6/¼ = 30 is more than 8. Then 5 of 8: 1.25·1/⅝ = 2. Then 1 of 2 fills the step.
    rows = [*[[0.0] * 3] * 6, *[mixed_row] * 2, *[mixed_row] * 5, *[[1.0] * 3] * 3, [1.0] * 3, mixed_row]
    pool = Pool(rows)
    result = pool.collect(DynamicGateConfig(adaptive_batch=True), 8)
    assert pool.asked == [8, 8, 2]
    assert (len(result.kept), result.batches, result.capped) == (8, 3, False)
    assert Pool(rows).collect(DynamicGateConfig(), 8).metrics()["gate/batches"] == 3
    assert expected_to_fill(3, 0.0, 8) == 8  # nothing was kept, so nothing is known


@given(POOLS, st.integers(1, 6))
def test_an_adaptive_batch_ends_with_the_same_groups_from_hardly_more_prompts(
    rewards: list[list[float | None]], count: int
) -> None:
    adaptive, full = (
        Pool(rewards).collect(DynamicGateConfig(max_batches=30, adaptive_batch=on), count) for on in (True, False)
    )
    assert keys(adaptive.kept) == keys(full.kept)
    # Only its last batch can bring more than a full one would have, and a batch has at most ``count`` prompts.
    assert len(adaptive.sampled) < len(full.sampled) + count


def test_lilo_oversamples_and_keeps_the_most_learnable() -> None:
    rewards: list[list[float | None]] = [[0.0] * 3, [1.0, 0.0, 0.0], [None] * 3, [1.0] * 3, [0.5] * 3, [1.0] * 3]
    pool = Pool(rewards)
    result = pool.collect(LiloGateConfig(oversample=3), 2)
    assert pool.asked == [6]
    assert keys(result.kept) == ["0", "1"]  # equal partial rewards are no more learnable than all wrong ones
    assert len(result.sampled) == 6
    assert result.metrics()["gate/dropped_less_learnable"] == 3
    assert result.metrics()["gate/dropped_unjudged"] == 1
    assert not result.capped


def test_lilo_does_not_train_on_what_nobody_judged() -> None:
    result = Pool([[None] * 3, [None] * 3, [1.0, 0.0, 0.0], [None] * 3]).collect(LiloGateConfig(oversample=2), 2)
    assert keys(result.kept) == ["2"]
    assert result.capped


def test_the_thread_that_samples_ahead_uses_the_gpu_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new thread's current GPU is the first, whichever that of the thread that started it."""
    used: list[tuple[str, torch.device]] = []
    collector = Collector.__new__(Collector)
    collector.config = Config()
    monkeypatch.setattr(Collector, "collect", lambda self, *_: Collected())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append((threading.current_thread().name, device)))
    with collector.ahead(1, 0) as following:
        following()
    assert used == [("pacedrl-ahead_0", torch.device("cuda:3"))]
