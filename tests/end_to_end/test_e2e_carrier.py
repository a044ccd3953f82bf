"""A completion carries all data about itself: nothing is joined by object identity or position in a list."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pacedrl import Trainer
from pacedrl.rollouts.collect import Collected
from pacedrl.types import Completion

TrainerFactory = Callable[..., Trainer]


def trained(trainer: Trainer) -> tuple[list[dict[str, Any]], list[Any]]:
    """Train; return the metrics without times, and the final content of the replay buffer."""
    trainer.train()
    rows = [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in trainer.folder.rows("metrics.jsonl")
    ]
    return rows, list(trainer.scheduler.replay_buffer.entries)


@pytest.mark.parametrize("recipe", ["paced", "flowrl", "dapo"])
def test_copies_of_every_list_on_the_way_give_the_same_run(
    trainer_of: TrainerFactory, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    settings = {"recipe": recipe, "run": {"steps": 3}, "data": {"eval": []}, "replay": {}}
    if recipe == "flowrl":
        settings |= {"estimator": {"name": "none"}}
    expected = trained(trainer_of(**settings))
    trainer = trainer_of(**settings)
    collect, update = trainer.collector.collect, trainer.learner.update

    def copied_groups(*arguments: Any) -> Collected:
        return copy.deepcopy(collect(*arguments))

    def copied_lists(batch: list[Completion], *rest: Any) -> Any:
        for completion in batch:
            completion.token_ids, completion.logprobs = list(completion.token_ids), list(completion.logprobs)
            completion.prompt_ids = list(completion.prompt_ids)
        return update(batch[::-1][::-1], *rest)

    monkeypatch.setattr(trainer.collector, "collect", copied_groups)
    monkeypatch.setattr(trainer.learner, "update", copied_lists)
    rows, entries = trained(trainer)
    assert rows == expected[0]
    assert entries == expected[1]
    assert (len(entries) > 0) == trainer.config.replay.enabled
