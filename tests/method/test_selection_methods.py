"""Selection by MaPP, BOTS and GRESO of a simulated policy: what they find, and that their state returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bandits import Bandit

from pacedrl.method import DifficultyScheduler, Rollouts

SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {"selection": "uniform", "estimator": "none"},
    "mapp": {"selection": "mapp", "estimator": "counts"},
    "bots": {"selection": "thompson", "estimator": "bots", "discount": 0.9},
    "greso": {"selection": "greso", "estimator": "none"},
}
GROUP = 8


def scheduler_for(bandit: Bandit, recipe: str, seed: int = 0) -> DifficultyScheduler:
    return DifficultyScheduler(bandit.keys, group_size=GROUP, seed=seed, **SETTINGS[recipe])


def polarised(prompts: int, seed: int = 0) -> Bandit:
    """A policy that always solves three in ten prompts, never solves four in ten, and half the time the others."""
    bandit, solved, hopeless = Bandit(prompts, seed=seed), prompts * 3 // 10, prompts * 4 // 10
    accuracy = np.repeat([1.0, 0.0, 0.5], [solved, hopeless, prompts - solved - hopeless])
    bandit.accuracy = bandit.rng.permutation(accuracy)
    return bandit


def run(scheduler: DifficultyScheduler, bandit: Bandit, steps: int, count: int = 16) -> list[list[str]]:
    """Return the prompts selected in each step."""
    chosen = []
    for _ in range(steps):
        chosen.append(scheduler.select(count))
        assert scheduler.select(count) == chosen[-1]
        scheduler.observe(bandit.rollouts(chosen[-1], GROUP))
    return chosen


def mixed_share(bandit: Bandit, chosen: list[list[str]]) -> float:
    """Return the mean probability that a selected group is mixed."""
    p = bandit.accuracy[[bandit.keys.index(key) for step in chosen for key in step]]
    return float((1.0 - p**GROUP - (1.0 - p) ** GROUP).mean())


@pytest.mark.parametrize("recipe", ["mapp", "bots", "greso"])
def test_more_groups_are_mixed_than_with_uniform_selection(recipe: str) -> None:
    shares = {}
    for name in ("uniform", recipe):
        bandit = polarised(200)
        shares[name] = mixed_share(bandit, run(scheduler_for(bandit, name), bandit, 60)[-20:])
    assert shares["uniform"] < 0.4
    assert shares[recipe] > 1.3 * shares["uniform"]


def test_greso_visits_everything_once_before_it_skips() -> None:
    bandit = polarised(160)
    scheduler = scheduler_for(bandit, "greso")
    first_epoch = [key for step in run(scheduler, bandit, 10) for key in step]
    assert sorted(first_epoch) == sorted(bandit.keys)
    second = [key for step in run(scheduler, bandit, 3) for key in step]
    assert len(set(second)) == len(second)
    # The 48 mixed prompts are due, and of the 112 others those that skip no epoch: with p = ½, half of them.
    assert scheduler.skips is not None
    due = int((scheduler.skips.next_epoch() == 1).sum()) + len(second)
    assert 48 + 56 - 3 * 5.3 < due < 48 + 56 + 3 * 5.3


def test_greso_samples_no_prompt_twice_in_a_step_that_refills() -> None:
    bandit = polarised(60)
    scheduler = scheduler_for(bandit, "greso")
    run(scheduler, bandit, 8)
    first = scheduler.take(16)
    second = scheduler.take(40)
    assert len({*first, *second}) == 56
    scheduler.observe(bandit.rollouts(first + second, GROUP))
    assert scheduler.visits_N.sum() == 8 * 16 + 56


def test_mapp_takes_the_prompts_that_are_most_likely_mixed() -> None:
    bandit = Bandit(64, seed=1)
    scheduler = scheduler_for(bandit, "mapp")
    for _ in range(2):
        scheduler.observe(bandit.rollouts(bandit.keys, GROUP))
    counts = scheduler.estimator.counts
    alpha, beta = 1 + counts.right_N, 1 + counts.wrong_N
    i = np.arange(GROUP)[:, None]
    unmixed = ((alpha + i) / (alpha + beta + i)).prod(axis=0) + ((beta + i) / (alpha + beta + i)).prod(axis=0)
    chosen = [bandit.keys.index(key) for key in scheduler.select(16)]
    assert unmixed[chosen].max() <= np.sort(unmixed)[15] + 1e-12
    assert scheduler.select(16) != DifficultyScheduler(bandit.keys, **SETTINGS["mapp"]).select(16)


def test_bots_learns_of_prompts_that_it_never_sampled() -> None:
    """All prompts are equally hard, so what is seen of some holds for the others."""
    bandit = Bandit(400, seed=2)
    bandit.accuracy[:] = 0.2
    scheduler = scheduler_for(bandit, "bots")
    run(scheduler, bandit, 15)
    never_N = scheduler.visits_N == 0
    assert never_N.sum() > 100
    estimate_N = scheduler.accuracy_estimates()
    assert estimate_N[never_N] == pytest.approx(np.full(never_N.sum(), 0.2), abs=0.1)
    scheduler = DifficultyScheduler(bandit.keys, **SETTINGS["bots"], implied_weight=0.0)
    run(scheduler, bandit, 15)
    assert scheduler.accuracy_estimates()[scheduler.visits_N == 0] == pytest.approx(0.5)


@pytest.mark.parametrize("recipe", ["mapp", "bots", "greso"])
def test_a_run_goes_on_from_its_state(recipe: str) -> None:
    bandit = polarised(80, seed=3)
    scheduler = scheduler_for(bandit, recipe)
    run(scheduler, bandit, 9)
    restored = scheduler_for(bandit, recipe)
    restored.load_state_dict(scheduler.state_dict())
    for _ in range(6):
        chosen = scheduler.select(16)
        assert restored.select(16) == chosen
        rollouts = bandit.rollouts(chosen, GROUP)
        assert restored.observe(rollouts) == pytest.approx(scheduler.observe(rollouts), nan_ok=True)


def test_a_step_in_which_nothing_was_judged_still_counts_as_a_visit() -> None:
    bandit = polarised(32)
    for recipe in ("bots", "greso"):
        scheduler = scheduler_for(bandit, recipe)
        chosen = scheduler.select(16)
        scheduler.observe(Rollouts(chosen, np.full(16, np.nan)))
        assert scheduler.visits_N.sum() == 16
        if recipe == "greso":
            assert set(scheduler.select(16)) == set(bandit.keys) - set(chosen)
