"""PacedTrainer trains in verl's own loop, queue and engine, as our trainer does on the same completions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

import numpy as np
import torch
from ray_cluster import (  # noqa: F401 - fixtures
    GROUP,
    NEW,
    PROMPTS,
    RATE,
    ROOM,
    ROWS,
    _configure,
    apart,
    cluster,
    data,
    model,
    queue,
    start,
    trained,
    weights,
)
from recorded import Recorded

import pacedrl.integrations.verl as integration
from pacedrl import Config, Trainer
from pacedrl.errors import InputError
from pacedrl.method import DifficultyScheduler
from pacedrl.seeding import derive_seed
from pacedrl.training.curriculum import build_scheduler

pytestmark = pytest.mark.slow


def ours(folder: Path, model: Path) -> Trainer:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tree = {
        "run": {"dir": str(folder / "ours"), "steps": 2, "device": "cpu"},
        "model": {"name": str(model)},
        "data": {"train": {"source": str(folder / "rows.jsonl"), "verifier": "exact"}},
        "sampling": {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": NEW},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0},
        "replay": {"capacity": ROOM * GROUP},
    }
    return Trainer(Config.model_validate(tree))


def recorded(scheduler: DifficultyScheduler, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], list[int]]:
    """Return lists that collect what the scheduler observes and how many completions it returns for replay."""
    seen: list[Any] = []
    replayed: list[int] = []
    observe, replay = scheduler.observe, scheduler.replay
    monkeypatch.setattr(scheduler, "observe", lambda fresh: [seen.append(fresh), observe(fresh)][1])

    def counted() -> list[Any]:
        entries = replay()
        replayed.append(len(entries))
        return entries

    monkeypatch.setattr(scheduler, "replay", counted)
    return seen, replayed


def test_two_steps_are_those_of_our_trainer_on_the_same_completions(
    start: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ours(tmp_path, model)

    def as_configured(keys: list[str], embeddings_NH: torch.Tensor, **_: Any) -> DifficultyScheduler:
        torch.manual_seed(derive_seed(own.config.run.seed, "partition"))
        return build_scheduler(own.config, keys, embeddings_NH)

    monkeypatch.setattr(integration, "DifficultyScheduler", as_configured)
    trainer, sampled = start("trainer.logger=[file]")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[0] == 0 < replayed[1]
    assert [len(fresh.keys) for fresh in seen] == [PROMPTS * GROUP] * 2  # neither filling nor replayed ones
    after = trained(tmp_path / "verl", 2)
    own.sampler = own.collector.sampler = Recorded(own.policy, sampled.steps)
    own.train()
    assert apart(own.policy.parameters(), after, weights(model)) < 1e-3
    mine_N, theirs_N = own.scheduler.accuracy_estimates(), trainer.scheduler.accuracy_estimates()
    assert mine_N == pytest.approx(theirs_N, abs=1e-5)
    assert mine_N.std() > 1e-3  # fitted
    assert [e.token_ids for e in own.scheduler.replay()] == [e.token_ids for e in trainer.scheduler.replay()]
    assert len(own.scheduler.replay()) > 0
    logged = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    observed = [float(np.mean(fresh.reward_B)) for fresh in seen]
    assert [row["accuracy/observed_mean"] for row in logged] == pytest.approx(observed)
    assert [row["critic/score/mean"] for row in logged] == pytest.approx(observed)  # verl's own, of fresh ones alone
    assert logged[0]["actor/kl_old"] == pytest.approx(0.0, abs=1e-5)
    assert logged[0]["actor/delta_abs"] == pytest.approx(10.0, abs=1e-4)  # |r - 0.5| / beta
    assert abs(logged[1]["actor/kl_old"]) > 1e-3  # that of what was replayed


def test_a_resumed_run_goes_on_as_if_nothing_had_been(start: Any, tmp_path: Path) -> None:
    whole, sampled = start("trainer.total_training_steps=4", f"trainer.default_local_dir={tmp_path / 'whole'}")
    whole.fit(sampled)
    half, sampled = start(f"trainer.default_local_dir={tmp_path / 'half'}")
    half.fit(sampled)
    resume = ("trainer.total_training_steps=4", f"trainer.default_local_dir={tmp_path / 'half'}")
    resumed, sampled = start(*resume)
    assert resumed.scheduler.step == resumed.global_steps == 2
    resumed.fit(sampled)
    for a, b in zip(trained(tmp_path / "whole", 4), trained(tmp_path / "half", 4), strict=True):
        assert torch.equal(a, b)
    assert resumed.scheduler.accuracy_estimates().tolist() == whole.scheduler.accuracy_estimates().tolist()
    assert resumed.scheduler.replay() == whole.scheduler.replay() != []
    saved = tmp_path / "half/global_step_4/data.pt"
    torch.save({"_snapshot": {}}, saved)
    with pytest.raises(InputError, match=r"data.pt was not saved by PacedTrainer; resume from another"):
        resumed._load_checkpoint()
    saved.unlink()
    resumed.scheduler.step = 0
    with pytest.raises(InputError, match=r"the checkpoint of step 4 has no data.pt, and so no scheduler"):
        resumed._load_checkpoint()


def test_two_processes_train_as_one_does(start: Any, tmp_path: Path, model: Path) -> None:
    schedulers = []
    for processes in (1, 2):
        trainer, sampled = start(f"trainer.default_local_dir={tmp_path / str(processes)}", processes=processes)
        trainer.fit(sampled)
        schedulers.append(trainer.scheduler)
    assert apart(trained(tmp_path / "1", 2), trained(tmp_path / "2", 2), weights(model)) < 1e-3
    one, two = schedulers
    assert one.accuracy_estimates() == pytest.approx(two.accuracy_estimates(), abs=1e-6)
    assert {e.token_ids for e in one.replay()} == {e.token_ids for e in two.replay()}


def test_under_bypass_the_servers_log_probabilities_are_mu(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, sampled = start("algorithm.rollout_correction.bypass_mode=true")
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[1] > 0
    ids_of = dict(zip(trainer.prompt_ids, trainer.prompt_ids.values(), strict=True))
    for fresh in seen:  # of the second step too: the sampler keeps the initial policy, which is no longer the actor's
        prompts = [ids_of[key] for key in fresh.keys]
        with torch.no_grad():
            logprobs_BT, _, mask_BT = sampled.policy.logprobs(prompts, fresh.token_ids)
        for given, row, mask in zip(fresh.logprobs, logprobs_BT, mask_BT, strict=True):
            assert given == pytest.approx(row[mask].tolist(), abs=1e-5)


def test_without_the_servers_log_probabilities_it_trains_and_replays_too(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sampled = start("actor_rollout_ref.rollout.calculate_log_probs=false", logprobs=False)
    _, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed[1] > 0
    assert trainer.scheduler.step == 2


def test_completions_with_a_tools_tokens_are_observed_and_not_replayed(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, sampled = start("actor_rollout_ref.actor.ppo_mini_batch_size=4", tools=True)
    assert trainer.scheduler.replay_buffer.entries.maxlen == 0  # no room is left
    seen, replayed = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    assert replayed == [0, 0]
    for fresh in seen:
        assert len(fresh.reward_B) == PROMPTS * GROUP
        assert [ids is None for ids in fresh.token_ids].count(True) == PROMPTS


def test_what_nobody_could_judge_is_left_out(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, sampled = start("trainer.total_training_steps=1", "trainer.logger=[file]", failing=True)
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    seen, _ = recorded(trainer.scheduler, monkeypatch)
    trainer.fit(sampled)
    (fresh,) = seen
    assert len(fresh.keys) == PROMPTS * GROUP - 1
    assert fresh.keys.count(fresh.keys[0]) == GROUP - 1
    (logged,) = [json.loads(line)["data"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Every |δ| is (r - 0.5)/β = 10; δ² is averaged over the whole mini-batch, filled up as it is.
    assert logged["actor/pg_loss"] == pytest.approx(100.0 * 15 / ((PROMPTS + ROOM) * GROUP), rel=1e-4)
    assert logged["actor/delta_abs"] == pytest.approx(10.0, abs=1e-3)
