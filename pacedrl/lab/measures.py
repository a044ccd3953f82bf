"""What one run measured, out of its folder: curves, the cost of reaching a target, the share of useful groups."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from pacedrl.logs import read_rows

FINAL = "final.json"
"""In a run's folder: the figures of its last policy, with more samples than on the way there."""
MEASURES = {
    "rollouts_to_target": "rollouts to the target",
    "tokens_to_target": "tokens to the target",
    "area": "pass@1 over training",
    "final": "final pass@1",
    "distinct_correct": "distinct correct answers at the end",
    "mixed_groups": "share of groups with mixed rewards",
    "estimate_mae": "error of the accuracy estimate",
}
"""The single numbers of a run that are averaged over seeds and compared, and what they are called."""


class Curve(BaseModel):
    """Held-out pass@1 at each evaluation, mean over the tasks that count, and what had been spent by then."""

    rollouts: list[int]
    tokens: list[int]
    accuracy: list[float]
    tasks: dict[str, list[float]]
    """The same of every task."""
    pass_at_k: dict[int, list[float]]
    """Of the tasks that count, for the other ks of ``eval.k``."""

    def of(self, k: int) -> list[float]:
        """pass@k at each evaluation."""
        return self.accuracy if k == 1 else self.pass_at_k[k]


class RunResult(BaseModel):
    """One recipe, one seed. All of it is the same whenever the run is repeated: no times."""

    curve: Curve
    steps: int
    pass_at_k: dict[int, float]
    """At the end, mean over the tasks that count."""
    distinct_correct: float
    """Different correct answers a prompt at the end, among as many samples as the largest k; tasks as above."""
    mixed_groups: float
    """Share of sampled groups whose rewards differ, over the run."""
    estimate_mae: float | None
    """Mean |p̂ − p̄| over the run; None for recipes that estimate nothing."""
    verifier_errors: int
    """Completions of the run that the verifier could not judge: generated, paid for, and left out of training."""
    left_out: float = 0.0
    """Share of completions that the verifier could not judge in the evaluation in which it was the largest."""

    def measure(self, name: str, target: float, budget: float) -> float | None:
        """One of ``MEASURES``; None where the run has no such thing. Costs and area are up to ``budget`` rollouts."""
        rollouts = self.curve.rollouts
        match name:
            case "rollouts_to_target":
                return spent_to_reach(rollouts, self.curve.accuracy, target, budget)
            case "tokens_to_target":
                limit = float(np.interp(budget, rollouts, self.curve.tokens))
                return spent_to_reach(self.curve.tokens, self.curve.accuracy, target, limit)
            case "area":
                return area(rollouts, self.curve.accuracy, budget)
            case "final":
                return self.pass_at_k[1]
            case "distinct_correct":
                return self.distinct_correct
            case "mixed_groups":
                return self.mixed_groups
            case "estimate_mae":
                return self.estimate_mae
        raise KeyError(name)

    def reaches(self, target: float, budget: float) -> bool:
        """Whether the curve came to the target within the budget."""
        return spent_to_reach(self.curve.rollouts, self.curve.accuracy, target, math.inf) <= budget


def spent_to_reach(spent: Sequence[float], accuracy: Sequence[float], target: float, limit: float) -> float:
    """What had been spent when the curve, straight between evaluations, first came to the target.

    ``limit`` where it did not by then: a lower bound, the same for all.
    """
    for i, value in enumerate(accuracy):
        if value >= target:
            if i == 0:
                return min(float(spent[0]), limit)
            share = (target - accuracy[i - 1]) / (value - accuracy[i - 1])
            return min(float(spent[i - 1] + share * (spent[i] - spent[i - 1])), limit)
    return limit


def area(spent: Sequence[float], accuracy: Sequence[float], limit: float) -> float:
    """Mean of the curve up to ``limit``, straight between evaluations, in units of accuracy."""
    x = np.unique([*(value for value in spent if value < limit), min(limit, spent[-1])])
    y = np.interp(x, spent, accuracy)
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def read_run(folder: Path, counted: Sequence[str] = ()) -> RunResult:
    """The result of a finished run; accuracy is the mean over the tasks ``counted``, over all where none are named."""
    steps, evals = read_rows(folder / "metrics.jsonl"), read_rows(folder / "eval.jsonl")
    final = json.loads((folder / FINAL).read_text(encoding="utf-8"))
    tokens = {0: 0} | {row["step"]: int(row["tokens/generated"]) for row in steps}
    tasks = [result["task"] for result in final["results"]]
    curves = {task: [row[f"{task}/pass@1"] for row in evals] for task in tasks}
    counted = counted or tasks
    errors = [row["accuracy/mae"] for row in steps if row["accuracy/mae"] is not None]
    figures = [result["figures"] for result in final["results"] if result["task"] in counted]
    return RunResult(
        curve=Curve(
            rollouts=[int(row["rollouts/generated"]) for row in evals],
            tokens=[tokens[row["step"]] for row in evals],
            accuracy=[float(np.mean(values)) for values in zip(*map(curves.get, counted), strict=True)],
            tasks=curves,
            pass_at_k={
                k: [float(np.mean([row[f"{task}/pass@{k}"] for task in counted])) for row in evals]
                for k in _other_ks(evals[0])
            },
        ),
        steps=steps[-1]["step"],
        pass_at_k={
            int(name.removeprefix("pass@")): float(np.mean([task[name]["mean"] for task in figures]))
            for name in figures[0]
            if name.startswith("pass@")
        },
        distinct_correct=float(np.mean([task["distinct_correct"]["mean"] for task in figures])),
        mixed_groups=_mixed_groups(folder),
        estimate_mae=float(np.mean(errors)) if errors else None,
        verifier_errors=sum(int(row["verifier/errors"]) for row in steps),
        left_out=max(
            [row.get(f"{task}/left_out", 0.0) for row in evals for task in counted]
            + [result["errors"] / result.get("completions", math.inf) for result in final["results"]]
        ),
    )


def seconds_at_evaluations(folder: Path) -> list[float]:
    """Wall-clock seconds of training, evaluations not counted, at each row of eval.jsonl."""
    elapsed = {0: 0.0}
    for row in read_rows(folder / "metrics.jsonl"):
        elapsed[row["step"]] = elapsed[row["step"] - 1] + row["time/step"]
    return [round(elapsed[row["step"]], 2) for row in read_rows(folder / "eval.jsonl")]


def _other_ks(row: dict[str, Any]) -> list[int]:
    """The ks of an evaluation's pass@k, but for 1."""
    found = {int(match[1]) for name in row if (match := re.fullmatch(r".*/pass@(\d+)", name))}
    return sorted(found - {1})


def _mixed_groups(folder: Path) -> float:
    mixed = [
        len({reward for reward in rewards if reward is not None}) > 1
        for row in read_rows(folder / "groups.jsonl")
        for rewards in row["rewards"]
    ]
    return float(np.mean(mixed))
