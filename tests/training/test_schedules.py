"""The learning rate's factor at each step."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pacedrl.config import OptimizerConfig
from pacedrl.training.learner import schedule_factor


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1.0] * 6),
        ("constant", 2, [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 0, [1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 2, [1 / 3, 2 / 3, 1.0, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
    ],
)
def test_schedules(schedule: Any, warmup: int, expected: list[float]) -> None:
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup)
    assert [schedule_factor(config, step, 6) for step in range(6)] == pytest.approx(expected)
    beyond = schedule_factor(config, 9, 6)
    assert beyond == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_a_warm_up_longer_than_the_run_divides_by_nothing() -> None:
    config = OptimizerConfig(schedule="cosine", warmup_steps=9)
    assert schedule_factor(config, 5, 6) == pytest.approx(0.6)
    assert schedule_factor(config, 9, 6) == 1.0
