"""Real runs that sample one step ahead."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cli_process import CommandLine, tiny_run
from crashes import kill_in_the_middle_of_a_row, signal_at
from test_e2e_resume import STEPS, assert_same_run

from pacedrl.training.pending import dump_collected, load_collected
from pacedrl.training.trainer import Trainer

TrainerFactory = Callable[..., Trainer]
AHEAD = {"sampling": {"ahead": True}}


def test_each_batch_is_sampled_by_the_policy_before_the_last_update(
    trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(run={"steps": 5}, **AHEAD)
    weights: list[list[torch.Tensor]] = []
    batches: list[Any] = []
    update = trainer.learner.update

    def recorded(batch: Any, *rest: Any) -> Any:
        weights.append([parameter.detach().clone() for parameter in trainer.policy.parameters()])
        batches.append([sequence for sequence in batch if not sequence.replayed])
        return update(batch, *rest)

    monkeypatch.setattr(trainer.learner, "update", recorded)
    trainer.train()
    rows = trainer.folder.rows("metrics.jsonl")
    assert [row["rollouts/age"] for row in rows] == [0, 1, 1, 1, 1]
    assert [row["rollouts/generated"] for row in rows] == [16 * step for step in range(1, 6)]
    for step, batch in enumerate(batches):
        with torch.no_grad():
            for parameter, value in zip(trainer.policy.parameters(), weights[max(step - 1, 0)], strict=True):
                parameter.copy_(value)
            logprobs_BT, _, mask_BT = trainer.policy.logprobs(
                [s.prompt_ids for s in batch], [s.token_ids for s in batch]
            )
        for sequence, row, mask in zip(batch, logprobs_BT, mask_BT, strict=True):
            assert sequence.anchor_logprobs == pytest.approx(row[mask].tolist(), abs=1e-4)


def test_prompts_under_way_are_not_taken_again(trainer_of: TrainerFactory) -> None:
    trainer = trainer_of(run={"steps": 6}, **AHEAD)
    trainer.train()
    keys = [set(row["keys"]) for row in trainer.folder.rows("groups.jsonl")]
    assert all(len(chosen) == 4 for chosen in keys)
    assert all(not before & after for before, after in itertools.pairwise(keys))


def test_a_pool_of_less_than_two_batches_is_used_whole(trainer_of: TrainerFactory) -> None:
    """Each batch of 4 from 6 prompts has the two that are not under way, and two of the batch before."""
    small = {"train": [{"source": "skills", "options": {"size": 6}}], "eval": []}
    trainer = trainer_of(run={"steps": 6}, data=small, **AHEAD)
    trainer.train()
    keys = [set(row["keys"]) for row in trainer.folder.rows("groups.jsonl")]
    assert all(len(before | after) == 6 for before, after in itertools.pairwise(keys))


def test_nothing_is_sampled_that_is_not_trained_on(trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(run={"steps": 50, "max_rollouts": 40}, **AHEAD)
    sampled: list[int] = []
    sample = trainer.collector.sample
    monkeypatch.setattr(trainer.collector, "sample", lambda step, *rest: sampled.append(step) or sample(step, *rest))
    assert trainer.train().rollouts == 48
    assert sampled == [0, 1, 2]


@pytest.mark.parametrize(
    "crash",
    [
        pytest.param(kill_in_the_middle_of_a_row("metrics.jsonl", 8), id="killed"),
        pytest.param(signal_at("pacedrl.training.learner:Learner._apply", 6, signal.SIGINT), id="updating"),
        pytest.param(signal_at("pacedrl.training.learner:Learner.accumulate_gradient", 6, signal.SIGINT), id="before"),
    ],
)
@pytest.mark.parametrize("size", [64, 6])  # of the pool: many prompts, or fewer than two batches
def test_a_run_ahead_resumes_bit_for_bit(cli: CommandLine, crash: Any, size: int) -> None:
    data = {"train": [{"source": "skills", "options": {"size": size}}]}
    whole, cut = (
        cli.write(f"{name}.yaml", tiny_run(name, run={"steps": STEPS}, data=data, **AHEAD)) for name in ("whole", "cut")
    )
    assert cli("train", whole).code == 0
    assert cli("train", cut, patch=crash).code != 0
    result = cli("train", cut)
    assert result.code == 0, result.err
    assert_same_run(cli.folder / "cut", cli.folder / "whole")


def test_groups_under_way_survive_a_checkpoint(trainer_of: TrainerFactory) -> None:
    trainer = trainer_of(run={"steps": 2}, **AHEAD)
    collected = trainer.collector.collect(0, 0, lambda: None)
    collected.sampled[1].dropped = "surplus"
    again = load_collected(dump_collected(collected), trainer.prompts)
    again.seconds = collected.seconds
    assert again == collected
    assert len(again.kept) == len(again.sampled) - 1
    assert again.metrics() == collected.metrics()
    old = dump_collected(collected) | {"kept": [0, 2, 3], "dropped": {"surplus": 1}}  # as version 0.1.0 began
    assert load_collected(old, trainer.prompts).kept == again.kept
    trainer.pool.close()


def test_the_oracle_cannot_look_ahead(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(recipe="oracle", **AHEAD))
    result = cli("train", "c.yaml")
    assert result.code == 2
    assert "sampling.ahead: the oracle needs the accuracies of the current policy" in result.err
