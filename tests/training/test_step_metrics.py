"""Figures of one step, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pacedrl.stopwatch import Stopwatch
from pacedrl.training.metrics import rollout_metrics, sample_rows
from pacedrl.types import Completion, Group, Prompt


def group(key: str, *judged: tuple[float | None, int, str]) -> Group:
    """A group of (reward, length, finish reason); None is a verifier error."""
    completions = [
        Completion([5] * length, [0.0] * length, f"{key}{i}", reason, reward, "failed" if reward is None else None)  # type: ignore[arg-type]
        for i, (reward, length, reason) in enumerate(judged)
    ]
    return Group(Prompt(key, "task", f"prompt {key}", f"answer {key}"), completions)


GROUPS = [
    group("a", (1.0, 2, "stop"), (0.0, 8, "length"), (None, 3, "stop")),
    group("b", (1.0, 1, "stop"), (1.0, 1, "stop"), (1.0, 1, "stop")),
    group("c", (0.25, 8, "length"), (None, 2, "stop"), (None, 1, "stop")),
    group("d", (0.5, 1, "stop"), (0.25, 1, "stop"), (0.5, 1, "stop")),
]


def test_rollout_metrics_by_hand_with_errors_left_out() -> None:
    assert rollout_metrics(GROUPS) == pytest.approx(
        {
            "rollouts/step": 12,
            "reward/mean": (1 + 0 + 3 + 0.25 + 1.25) / 9,
            "reward/total_mean": (1 + 0 + 3 + 0.25 + 1.25) / 9,
            "reward/mixed_groups": 2 / 4,  # a and d; an error beside one reward does not make a mixture
            "completion/length_mean": 30 / 12,
            "completion/length_max": 8,
            "completion/truncated": 2 / 12,
            "verifier/errors": 3,
        }
    )


def test_parts_of_the_reward_are_logged_and_do_not_touch_its_mean() -> None:
    groups = [group("a", (1.0, 2, "stop"), (0.0, 8, "length"), (None, 3, "stop"))]
    for completion, parts in zip(
        groups[0].completions, ({"format": 0.5}, {"format": 0.0}, {"format": 9.0}), strict=True
    ):
        completion.parts = parts
    metrics = rollout_metrics(groups, ["format", "overlong"])
    assert (metrics["reward/mean"], metrics["reward/total_mean"]) == (0.5, 0.75)
    assert metrics["reward/part/format"] == 0.25
    assert math.isnan(metrics["reward/part/overlong"])


def test_nothing_judged_has_no_mean_reward() -> None:
    metrics = rollout_metrics([group("a", (None, 2, "stop"), (None, 4, "length"))])
    assert math.isnan(metrics["reward/mean"])
    assert metrics["verifier/errors"] == 2
    assert metrics["reward/mixed_groups"] == 0
    assert metrics["completion/truncated"] == 0.5


def test_sample_rows_are_spread_over_the_batch_and_show_a_failure() -> None:
    groups = [replace(one, accuracy_estimate=0.1 * i) for i, one in enumerate(GROUPS, start=1)]
    rows = sample_rows(groups, 2)
    assert [row["completion"] for row in rows] == ["a0", "d0", "a2"]
    assert rows[0] == {
        "key": "a",
        "task": "task",
        "prompt": "prompt a",
        "completion": "a0",
        "reward": 1.0,
        "parts": {},
        "error": None,
        "finish_reason": "stop",
        "answer": "answer a",
        "observed_accuracy": 0.5,
        "accuracy_estimate": 0.1,
    }
    assert (rows[2]["reward"], rows[2]["error"]) == (None, "failed")
    assert [row["key"] for row in sample_rows(groups, 9)] == ["a", "b", "c", "d", "a"]
    assert [row["key"] for row in sample_rows(groups[1:2], 9)] == ["b"]
    assert sample_rows(groups, 0) == []


def test_observed_accuracy_leaves_errors_out() -> None:
    assert [one.observed_accuracy for one in GROUPS] == pytest.approx([0.5, 1.0, 0.25, 1.25 / 3])
    assert group("e", (None, 1, "stop")).observed_accuracy is None


def test_the_stopwatch_times_phases_within_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 11.0, 13.0, 14.0, 14.5, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Stopwatch()
    with clock.phase("select"):
        pass
    with clock.phase("update"):
        pass
    assert clock.metrics() == {"time/select": 2.0, "time/update": 0.5, "time/step": 10.0}
