"""From judged groups to what learner and scheduler take: order, advantages, anchors and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
import torch

from pacedrl.config import Config
from pacedrl.config.method import ObjectiveConfig
from pacedrl.method import DifficultyScheduler, ReplayEntry, Rollouts
from pacedrl.training.learner import fresh_rollouts, replayed_rollouts
from pacedrl.training.learner import training_batch as batch_of
from pacedrl.training.objectives import OBJECTIVES, build_objective
from pacedrl.types import Completion, Group, Prompt

BETA = 0.1
PROMPT_IDS = {"a": [1, 5], "b": [1, 6, 7], "c": [1]}
PROMPTS = {key: Prompt(key, "t", key, "1", token_ids=ids) for key, ids in PROMPT_IDS.items()}


@pytest.fixture
def scheduler() -> DifficultyScheduler:
    """A scheduler that was fitted a little, so that prompts differ in log Z."""
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


def training_batch(
    groups: list[Group],
    replayed: list[ReplayEntry],
    scheduler: DifficultyScheduler,
    config: Config,
    reference: Callable[[Sequence[Completion]], list[list[float]]] | None = None,
) -> list[Completion]:
    objective = build_objective(config)
    return batch_of(groups, replayed, PROMPTS, objective, scheduler, config.replay.anchor, reference)


def trained(batch: Sequence[Completion], log_ratios: Sequence[float]) -> None:
    """Fill in the log-ratios, as the learner does."""
    for completion, log_ratio in zip(batch, log_ratios, strict=True):
        completion.log_ratio = log_ratio


def observed(groups: list[Group], config: Config) -> Rollouts:
    return fresh_rollouts(groups, build_objective(config))


@pytest.fixture
def groups() -> list[Group]:
    """The second group's first completion, and all but one of the first's, could not be judged or were."""
    return [
        Group(PROMPTS["b"], [completion(10, 1.0), completion(11, 0.25)]),
        Group(PROMPTS["a"], [completion(12, None), completion(13, 0.0)]),
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
    batch = training_batch(groups, replayed, scheduler, config_of(anchor))
    log_z = dict(zip("abc", scheduler.log_z(["a", "b", "c"]).tolist(), strict=True))
    assert [list(s.token_ids) for s in batch] == [[10, 2], [11, 2], [13, 2], [20, 2], [21, 2]]
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
    batch = training_batch(groups, [], scheduler, config_of())
    trained(batch, [0.1, 0.2, 0.3])
    rollouts = observed(groups, config_of())
    assert rollouts.keys == ["b", "b", "a", "a"]
    reward_B = np.asarray(rollouts.reward_B)
    assert np.isnan(reward_B).tolist() == [False, False, True, False]
    assert reward_B[[0, 1, 3]].tolist() == [1.0, 0.25, 0.0]
    assert rollouts.log_ratio_B == [0.1, 0.2, 0.0, 0.3]
    assert rollouts.token_ids == [[10, 2], [11, 2], None, [13, 2]]  # nothing to replay without a verdict
    assert rollouts.logprobs == [pytest.approx([-0.1 * i, -0.2]) for i in (10, 11, 12, 13)]


def test_replayed_rollouts_keep_key_reward_and_ratio_together(
    scheduler: DifficultyScheduler, replayed: list[ReplayEntry]
) -> None:
    batch = training_batch([], replayed, scheduler, config_of())
    trained(batch, [0.5, -0.5])
    rollouts = replayed_rollouts(batch)
    assert (rollouts.keys, rollouts.reward_B, rollouts.log_ratio_B) == (["c", "b"], [1.0, 1.0], [0.5, -0.5])
    assert rollouts.token_ids is None  # so that the scheduler does not admit it to replay again


def test_nothing_judged_is_an_empty_batch(scheduler: DifficultyScheduler, groups: list[Group]) -> None:
    for group in groups:
        for one in group.completions:
            one.reward = None
    assert training_batch(groups, [], scheduler, config_of()) == []
    rollouts = observed(groups, config_of())
    assert all(math.isnan(reward) for reward in np.asarray(rollouts.reward_B))
    before = scheduler.log_z(["a", "b", "c"])
    assert math.isnan(scheduler.observe(rollouts)["loss/partition"])
    assert torch.equal(scheduler.log_z(["a", "b", "c"]), before)


REFERENCES = [[-1.5, -0.7], [-1.0, -0.4], [-1.0, -0.3]]
"""Reference log-probabilities of the three judged completions."""


def reference(batch: Sequence[Completion]) -> list[list[float]]:
    return REFERENCES[: len(batch)]


def method_config(recipe: str, **sections: object) -> Config:
    return Config.model_validate({"recipe": recipe} | sections)


def test_gflowrls_advantage_is_the_gap_of_what_each_completion_implies_for_log_z(groups: list[Group]) -> None:
    """Old means −0.6, −0.65, −0.75 a token, reference means −1.1, −0.7, −0.65: ratios ref/old −0.5, −0.05, 0.1.

    −g = (r/β + ref/old) − its group mean: 0 in a group of one.
    """
    config = method_config("gflowrl", objective={"beta": 0.5})
    scheduler = DifficultyScheduler(["a", "b", "c"], selection="uniform", estimator="none")
    batch = training_batch(groups, [], scheduler, config, reference)
    implied = [1.0 / 0.5 - 0.5, 0.25 / 0.5 - 0.05]
    expected = [(implied[0] - implied[1]) / 2, (implied[1] - implied[0]) / 2, 0.0]
    assert [s.advantage for s in batch] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert [s.reference_logprobs for s in batch] == REFERENCES


def test_flowrls_log_z_is_fitted_to_z_scores_less_the_ratio_to_the_reference(groups: list[Group]) -> None:
    config = method_config("flowrl", objective={"beta": 0.5})
    scheduler = DifficultyScheduler(["a", "b", "c"], torch.eye(3, 4), beta=0.5, selection="uniform", estimator="none")
    batch = training_batch(groups[:1], [], scheduler, config, reference)
    z = 0.375 / (0.28125**0.5 + 1e-4)
    log_z = scheduler.log_z(["b"]).item()
    assert [s.advantage for s in batch] == pytest.approx([z / 0.5 - log_z, -z / 0.5 - log_z], rel=1e-5)
    trained(batch, [0.2, -0.4])  # the second group was not trained on
    rollouts = observed(groups, config)
    assert list(rollouts.reward_B)[:2] == [1.0, 0.25]  # type: ignore[arg-type]
    assert rollouts.partition_reward_B == pytest.approx([z, -z, math.nan, math.nan], nan_ok=True)
    # Σ(log π_θ − log π_old)/T + mean_t(log π_old − log π_ref)
    assert rollouts.log_ratio_B == pytest.approx([0.2 / 2 + 0.5, -0.4 / 2 + 0.05, 0.0, 0.0])


def test_the_grpo_family_is_anchored_to_the_trainers_policy_and_measured_against_the_sampler(
    groups: list[Group],
) -> None:
    config = method_config("paced_grpo")
    scheduler = DifficultyScheduler(["a", "b", "c"], torch.eye(3, 4))
    batch = training_batch(groups, [], scheduler, config)
    assert [s.anchor_logprobs for s in batch] == [None] * 3
    assert [s.logprobs for s in batch] == [pytest.approx([-0.1 * i, -0.2]) for i in (10, 11, 13)]
    assert batch[0].advantage == -batch[1].advantage == pytest.approx(0.375 / (0.28125**0.5 + 1e-4), rel=1e-5)
    assert batch[2].advantage == 0.0
    # Its log Z estimates accuracy for the scheduler: β·KL does not belong in it.
    trained(batch, [0.2, -0.4, 0.3])
    assert observed(groups, config).log_ratio_B == [0.0] * 4


def test_the_blended_baseline_of_fresh_and_of_replayed_completions(
    groups: list[Group], replayed: list[ReplayEntry]
) -> None:
    config = method_config("paced_plus", objective={"beta": BETA}, replay={"enabled": True})
    scheduler = DifficultyScheduler(["a", "b", "c"], torch.eye(3, 4), beta=BETA, estimator="combined", discount=1.0)
    scheduler.observe(Rollouts(["b", "b"], [1.0, 0.0]))
    estimate = dict(zip("abc", scheduler.accuracy_estimate(["a", "b", "c"]).tolist(), strict=True))
    batch = training_batch(groups, replayed, scheduler, config)
    baselines = [(6 * estimate["b"] + 0.25) / 7, (6 * estimate["b"] + 1.0) / 7, estimate["a"]]  # strengths 6 and 4
    expected = [(r - b) / BETA for r, b in zip([1.0, 0.25, 0.0], baselines, strict=True)]
    expected += [(1.0 - estimate["c"]) / BETA, (1.0 - estimate["b"]) / BETA]
    assert [s.advantage for s in batch] == pytest.approx(expected, rel=1e-4)


def test_what_a_gate_dropped_informs_the_estimates_but_is_not_replayed(
    scheduler: DifficultyScheduler, groups: list[Group]
) -> None:
    batch = training_batch(groups[:1], [], scheduler, config_of())
    trained(batch, [0.1, 0.2])
    rollouts = observed(groups, config_of())
    assert rollouts.keys == ["b", "b", "a", "a"]
    assert rollouts.token_ids == [[10, 2], [11, 2], None, None]
    assert rollouts.log_ratio_B == [0.1, 0.2, 0.0, 0.0]


def test_log_z_may_be_fitted_to_z_scores_for_an_ablation_while_accuracy_stays_raw(groups: list[Group]) -> None:
    config = Config.model_validate({"partition": {"z_score_rewards": True}})
    rollouts = observed(groups, config)
    assert list(rollouts.reward_B) == pytest.approx([1.0, 0.25, math.nan, 0.0], nan_ok=True)
    half = math.sqrt(0.5)  # of two rewards, by the sample's standard deviation
    assert list(rollouts.partition_reward_B or []) == pytest.approx([half, -half, math.nan, 0.0], abs=2e-4, nan_ok=True)
    assert observed(groups, config_of()).partition_reward_B is None


def test_every_objective_of_the_configuration_has_its_class() -> None:
    union, _ = get_args(ObjectiveConfig)
    assert {section.model_fields["name"].default for section in get_args(union)} == OBJECTIVES.keys()


@pytest.mark.parametrize("recipe", ["grpo", "flowrl", "gflowrl"])
def test_an_objective_without_replay_says_so(recipe: str, scheduler: DifficultyScheduler) -> None:
    config = method_config(recipe)
    assert not config.objective.can_replay
    with pytest.raises(NotImplementedError, match="cannot replay"):
        build_objective(config).replayed_advantages([Completion([1], [-1.0], reward=1.0)], scheduler)
