"""From judged groups to what learner and scheduler take: order, advantages, anchors and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pacedrl.config import Config
from pacedrl.method import DifficultyScheduler, ReplayEntry, Rollouts
from pacedrl.training.batch import fresh_rollouts, replayed_rollouts, training_batch
from pacedrl.types import Completion, Group, Prompt

BETA = 0.1
PROMPT_IDS = {"a": [1, 5], "b": [1, 6, 7], "c": [1]}


@pytest.fixture
def scheduler() -> DifficultyScheduler:
    """Fitted a little, so that every prompt has a log Z of its own."""
    embeddings_NH = torch.eye(3, 4)
    made = DifficultyScheduler(["a", "b", "c"], embeddings_NH, beta=BETA, seed=3)
    for _ in range(5):
        made.observe(Rollouts(["a", "b", "c"], [0.0, 0.5, 1.0]))
    assert len(set(made.log_z(["a", "b", "c"]).tolist())) == 3
    return made


def config_of(anchor: str = "behaviour") -> Config:
    return Config.model_validate({"objective": {"beta": BETA}, "replay": {"anchor": anchor}})


def completion(token: int, reward: float | None) -> Completion:
    error = "judge failed" if reward is None else None
    return Completion([token, 2], [-0.1 * token, -0.2], str(token), "stop", reward, error)


@pytest.fixture
def groups() -> list[Group]:
    """The second group's first completion, and all but one of the first's, could not be judged or were."""
    return [
        Group(Prompt("b", "t", "b", "1"), PROMPT_IDS["b"], [completion(10, 1.0), completion(11, 0.25)]),
        Group(Prompt("a", "t", "a", "1"), PROMPT_IDS["a"], [completion(12, None), completion(13, 0.0)]),
    ]


@pytest.fixture
def replayed() -> list[ReplayEntry]:
    return [
        ReplayEntry("c", (20, 2), (-0.5, -0.6), 1.0, 0, 0.4),
        ReplayEntry("b", (21, 2), (-0.7, -0.8), 1.0, 1, 0.3),
    ]


@pytest.mark.parametrize("anchor", ["behaviour", "current"])
def test_judged_fresh_completions_come_first_replayed_ones_after(
    scheduler: DifficultyScheduler, groups: list[Group], replayed: list[ReplayEntry], anchor: str
) -> None:
    batch = training_batch(groups, replayed, PROMPT_IDS, scheduler, config_of(anchor))
    log_z = dict(zip("abc", scheduler.log_z(["a", "b", "c"]).tolist(), strict=True))
    assert [list(s.completion_ids) for s in batch] == [[10, 2], [11, 2], [13, 2], [20, 2], [21, 2]]
    assert [list(s.prompt_ids) for s in batch] == [PROMPT_IDS[key] for key in "bbacb"]
    assert [s.replayed for s in batch] == [False, False, False, True, True]
    rewards = [1.0, 0.25, 0.0, 1.0, 1.0]
    expected = [reward / BETA - log_z[key] for reward, key in zip(rewards, "bbacb", strict=True)]
    assert [s.advantage for s in batch] == pytest.approx(expected, rel=1e-5)
    fresh = [[-1.0, -0.2], [-1.1, -0.2], [-1.3, -0.2]]
    old = [[-0.5, -0.6], [-0.7, -0.8]] if anchor == "behaviour" else [None, None]
    anchors = [None if s.anchor_logprobs is None else list(s.anchor_logprobs) for s in batch]
    assert anchors[:3] == [pytest.approx(row) for row in fresh]
    assert anchors[3:] == old


def test_each_log_ratio_goes_back_to_its_own_completion(scheduler: DifficultyScheduler, groups: list[Group]) -> None:
    batch = training_batch(groups, [], PROMPT_IDS, scheduler, config_of())
    rollouts = fresh_rollouts(groups, batch, [0.1, 0.2, 0.3], config_of())
    assert rollouts.keys == ["b", "b", "a", "a"]
    reward_B = np.asarray(rollouts.reward_B)
    assert np.isnan(reward_B).tolist() == [False, False, True, False]
    assert reward_B[[0, 1, 3]].tolist() == [1.0, 0.25, 0.0]
    assert rollouts.log_ratio_B == [0.1, 0.2, 0.0, 0.3]
    assert rollouts.token_ids == [[10, 2], [11, 2], [12, 2], [13, 2]]
    assert rollouts.logprobs == [pytest.approx([-0.1 * i, -0.2]) for i in (10, 11, 12, 13)]


def test_replayed_rollouts_keep_key_reward_and_ratio_together(replayed: list[ReplayEntry]) -> None:
    rollouts = replayed_rollouts(replayed, [0.5, -0.5])
    assert (rollouts.keys, rollouts.reward_B, rollouts.log_ratio_B) == (["c", "b"], [1.0, 1.0], [0.5, -0.5])
    assert rollouts.token_ids is None  # so that the scheduler admits nothing of it a second time


def test_nothing_judged_is_an_empty_batch(scheduler: DifficultyScheduler, groups: list[Group]) -> None:
    for group in groups:
        for one in group.completions:
            one.reward = None
    assert training_batch(groups, [], PROMPT_IDS, scheduler, config_of()) == []
    rollouts = fresh_rollouts(groups, [], [], config_of())
    assert all(math.isnan(reward) for reward in np.asarray(rollouts.reward_B))
    before = scheduler.log_z(["a", "b", "c"])
    assert math.isnan(scheduler.observe(rollouts)["loss/partition"])
    assert torch.equal(scheduler.log_z(["a", "b", "c"]), before)
