"""GRESO, BOTS and MaPP in the real loop on the tiny model: what they do beside training and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_process import tiny_run

from pacedrl import Config, Trainer

PROMPTS, GROUP = 6, 4


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def trainer_of(folder: Path, recipe: str, steps: int, **sections: Any) -> Trainer:
    shape = {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": 10}
    settings: dict[str, Any] = {"recipe": recipe, "run": {"steps": steps}, "data": {"eval": []}, "sampling": shape}
    return Trainer(Config.model_validate(tiny_run(str(folder), **settings | sections)))


def asked_of(trainer: Trainer) -> list[tuple[int, int]]:
    """Record how many prompts each selection asks for, and how many the step had sampled before."""
    asked: list[tuple[int, int]] = []
    select = trainer.scheduler.select

    def recorded(count: int) -> list[str]:
        asked.append((count, len(trainer.scheduler.leases)))
        return select(count)

    trainer.scheduler.select = recorded  # type: ignore[method-assign]
    return asked


def test_greso_refills_with_fewer_prompts_and_lets_unmixed_ones_skip(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "greso", steps=12)
    asked = asked_of(trainer)
    trainer.train()
    first = [count for count, sampled in asked if sampled == 0]
    later = [count for count, sampled in asked if sampled > 0]
    assert first == [PROMPTS] * 12
    assert min(later) < PROMPTS >= max(later)
    skips, scheduler = trainer.scheduler.skips, trainer.scheduler
    assert skips is not None
    assert scheduler.visits_N.sum() == sum(first) + sum(later)
    unmixed_N, seen_N = skips.run_N != 0, scheduler.visits_N > 0
    assert (unmixed_N & seen_N).any()
    next_N = skips.next_epoch()
    assert (next_N[~unmixed_N] == skips.epoch_N[~unmixed_N]).all()
    assert (next_N[unmixed_N] > skips.epoch_N[unmixed_N]).any()
    chosen_N = np.isin(scheduler.keys, scheduler.select(PROMPTS))
    assert next_N[chosen_N].max() <= next_N[~chosen_N].min()


def test_bots_changes_the_estimates_of_prompts_that_were_not_sampled(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "bots", steps=3)
    trainer.train()
    never_N = trainer.scheduler.visits_N == 0
    assert never_N.any()
    estimate_N = trainer.scheduler.accuracy_estimates()[never_N]
    assert np.ptp(estimate_N) == pytest.approx(0.0, abs=1e-12)  # they share the same history
    assert abs(estimate_N[0] - 0.5) > 0.01


def test_mapp_asks_for_the_configured_group(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "mapp", steps=1)
    trainer.train()
    assert trainer.scheduler.group_size == GROUP
    beliefs = trainer.scheduler.estimator.beliefs()
    chosen = [trainer.scheduler.index[key] for key in trainer.scheduler.select(PROMPTS)]
    assert beliefs.mixed(GROUP)[chosen].min() >= np.sort(beliefs.mixed(GROUP))[-PROMPTS] - 1e-12
