"""The method through the real loop: it learns, selects by its estimates, replays what it stored, and is calibrated."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cli_process import tiny_run

from pacedrl import Config, Trainer
from pacedrl.training.learner import Update
from pacedrl.types import Completion

TrainerFactory = Callable[..., Trainer]


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    lines = (trainer.folder.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def long_trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Thirty steps on five skills, prompts drawn uniformly, so that estimates of all of them can be judged."""
    folder = tmp_path_factory.mktemp("long-trained")
    skills = {"skills": ["copy", "negate", "rotate", "add", "sort"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACEDRL_CACHE", str(folder / "cache"))
        torch.set_num_threads(1)
        tree = tiny_run(
            str(folder / "run"),
            run={"steps": 30},
            data={
                "train": [{"source": "skills", "options": skills | {"size": 512}}],
                "eval": [{"source": "skills", "name": "held", "split": "test", "options": skills | {"size": 64}}],
            },
            sampling={"prompts_per_step": 24, "group_size": 8},
            selection={"explore_fraction": 1.0},
            replay={"capacity": 32, "admit": 16},
            verifier={"workers": 2},
            eval={"every": 0, "samples": 8, "k": [1, 8]},
            checkpoint={"every": 30},
        )
        trainer = Trainer(Config.model_validate(tree))
        trainer.train()
    return trainer


def test_training_raises_the_reward(long_trained: Trainer) -> None:
    before, after = long_trained.folder.rows("eval.jsonl")
    assert (before["step"], after["step"]) == (0, 30)
    assert after["held/pass@1"] > before["held/pass@1"] + 0.08
    rewards = [row["reward/mean"] for row in metrics(long_trained)]
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10]) + 0.05


def test_the_estimate_of_accuracy_calibrates(long_trained: Trainer) -> None:
    rows = metrics(long_trained)
    assert rows[0]["accuracy/estimate_mean"] == pytest.approx(0.5, abs=1e-6)
    early, late = rows[:3], rows[-10:]
    assert np.mean([row["accuracy/mae"] for row in late]) < np.mean([row["accuracy/mae"] for row in early]) - 0.05
    assert np.mean([row["accuracy/spearman"] for row in late]) > 0.4
    assert abs(np.mean([row["accuracy/bias"] for row in late])) < 0.08


def test_the_final_estimate_agrees_with_held_out_accuracy(long_trained: Trainer) -> None:
    """log Z never saw completions of these prompts, but estimates their difficulty from the initial policy's
    embeddings."""
    from pacedrl.config import ModelConfig
    from pacedrl.policy.policy import Policy

    (task,) = long_trained.eval_tasks
    ids = [prompt.token_ids for prompt in task.prompts]
    embeddings_NH = Policy.load(ModelConfig(), torch.device("cpu")).embed(ids)
    estimate = float(np.mean(long_trained.scheduler.partition.accuracy_of(embeddings_NH)))
    assert estimate == pytest.approx(long_trained.folder.rows("eval.jsonl")[-1]["held/pass@1"], abs=0.12)


def record_selection(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, set[str], set[str]]]:
    """After each step: all estimates when it began, the keys selected, and the keys sampled."""
    seen: list[tuple[np.ndarray, set[str], set[str]]] = []
    select, sample = trainer.scheduler.select, trainer.collector.sample
    estimates: list[np.ndarray] = []

    def selecting(count: int) -> list[str]:
        estimates.append(trainer.scheduler.accuracy_estimates().copy())
        return select(count)

    def sampling(step: int, keys: list[str], *rest: Any) -> Any:
        groups = sample(step, keys, *rest)
        seen.append((estimates[-1], set(keys), {group.prompt.key for group in groups}))
        return groups

    monkeypatch.setattr(trainer.scheduler, "select", selecting)
    monkeypatch.setattr(trainer.collector, "sample", sampling)
    return seen


@pytest.mark.parametrize("target", [0.5, 0.9])
def test_the_prompts_sampled_are_those_nearest_to_the_target(
    trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch, target: float
) -> None:
    trainer = trainer_of(run={"steps": 8}, data={"eval": []}, selection={"target_accuracy": target})
    seen = record_selection(trainer, monkeypatch)
    trainer.train()
    assert len(seen) == 8
    for estimate_N, selected, sampled in seen:
        assert selected == sampled
        assert len(selected) == 4
        distance = {key: abs(p - target) for key, p in zip(trainer.scheduler.keys, estimate_N, strict=True)}
        others = [d for key, d in distance.items() if key not in selected]
        assert max(distance[key] for key in selected) <= min(others)
    assert np.ptp(seen[-1][0]) > 0.01  # the estimates differ, so the choice was not a tie


def test_exploring_draws_prompts_that_pacing_would_not(
    trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_distance(explore_fraction: float) -> tuple[float, list[set[str]]]:
        trainer = trainer_of(run={"steps": 10}, data={"eval": []}, selection={"explore_fraction": explore_fraction})
        seen = record_selection(trainer, monkeypatch)
        trainer.train()
        place = {key: i for i, key in enumerate(trainer.scheduler.keys)}
        chosen = [abs(estimate_N[[place[key] for key in keys]] - 0.5).mean() for estimate_N, keys, _ in seen[1:]]
        return float(np.mean(chosen)), [keys for _, keys, _ in seen]

    paced, paced_keys = mean_distance(0.0)
    uniform, uniform_keys = mean_distance(1.0)
    assert paced < 0.5 * uniform
    assert paced_keys[1:] != uniform_keys[1:]


@pytest.mark.parametrize("anchor", ["behaviour", "current"])
def test_what_is_replayed_is_what_was_sampled(
    trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch, anchor: str
) -> None:
    trainer = trainer_of(run={"steps": 5}, data={"eval": []}, replay={"capacity": 8, "admit": 4, "anchor": anchor})
    update = trainer.learner.update
    at_generation: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
    replays: list[tuple[Completion, float]] = []

    def recorded(batch: list[Completion], *rest: Any) -> Update:
        fresh = [sequence for sequence in batch if not sequence.replayed]
        with torch.no_grad():  # by the policy that sampled them, which this update is about to change
            logprobs_BT, _, _ = trainer.policy.logprobs(
                [s.prompt_ids for s in fresh], [s.token_ids for s in fresh], trainer.config.sampling.temperature
            )
        for sequence, row in zip(fresh, logprobs_BT.tolist(), strict=True):
            key = (tuple(sequence.prompt_ids), tuple(sequence.token_ids))
            at_generation.setdefault(key, row[: len(sequence.token_ids)])
        result = update(batch, *rest)
        replays.extend((sequence, float(sequence.log_ratio or 0.0)) for sequence in batch if sequence.replayed)
        return result

    monkeypatch.setattr(trainer.learner, "update", recorded)
    trainer.train()
    assert sum(row["replay/trained"] for row in metrics(trainer)) == len(replays) > 8
    ratios = np.array([ratio for _, ratio in replays])
    if anchor == "current":
        assert all(sequence.anchor_logprobs is None for sequence, _ in replays)
        assert np.abs(ratios).max() < 1e-5
        return
    first_seen = 0
    for sequence, _ in replays:
        assert sequence.anchor_logprobs is not None
        stored = at_generation[tuple(sequence.prompt_ids), tuple(sequence.token_ids)]
        first_seen += np.allclose(stored, sequence.anchor_logprobs, atol=1e-4)
    # The same completion may have been sampled twice, by two policies; nearly all were not.
    assert first_seen >= 0.8 * len(replays)
    assert np.abs(ratios).max() > 0.01  # the policy has moved since


def test_replayed_completions_are_correct(trainer_of: TrainerFactory) -> None:
    trainer = trainer_of(run={"steps": 4}, data={"eval": []})
    trainer.train()
    entries = trainer.scheduler.replay_buffer.entries
    assert 0 < len(entries) <= 8
    for entry in entries:
        assert entry.reward == 1.0
        assert trainer.policy.decode(entry.token_ids[:-1]).strip() == trainer.prompts[entry.key].answer
        assert len(entry.logprobs) == len(entry.token_ids)
