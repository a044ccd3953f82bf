"""Held-out accuracy of a run at its evaluations, and whether it has changed."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from pacedrl.diagnosis.rules import Z_95, Change
from pacedrl.report.run import Floats, RunLogs, column
from pacedrl.view import left_out


@dataclass(frozen=True)
class HeldOutAccuracy:
    """pass@k and its 95% interval at each evaluation, after ``rollouts`` generated completions."""

    rollouts: Floats
    mean: Floats
    low: Floats
    high: Floats


def task_accuracy(run: RunLogs, task: str, k: int) -> HeldOutAccuracy:
    """Return pass@``k`` of one task with its intervals (bootstrap over prompts) as logged."""
    name = f"{task}/pass@{k}"
    return HeldOutAccuracy(
        *(column(run.evals, key) for key in ("rollouts/generated", name, f"{name}_low", f"{name}_high"))
    )


def mean_accuracy(run: RunLogs, k: int) -> HeldOutAccuracy:
    """Return the mean of pass@``k`` over the tasks; its interval takes their errors to be independent."""
    tasks = [task_accuracy(run, task, k) for task in run.tasks]
    mean = np.mean([task.mean for task in tasks], axis=0)
    half = np.sqrt(np.sum([np.square((task.high - task.low) / 2) for task in tasks], axis=0)) / len(tasks)
    return HeldOutAccuracy(tasks[0].rollouts, mean, (mean - half).clip(0, 1), (mean + half).clip(0, 1))


def evaluated_ks(run: RunLogs) -> list[int]:
    """Return, in ascending order, each k whose pass@k was logged for every task at every evaluation."""
    if not run.evals:
        return []
    prefix = f"{run.tasks[0]}/pass@"
    found = [name.removeprefix(prefix) for name in run.evals[0] if name.startswith(prefix)]
    ks = sorted(int(text) for text in found if text.isdigit())
    return [k for k in ks if all(f"{name}/pass@{k}" in row for name in run.tasks for row in run.evals)]


def held_out_change(run: RunLogs, task: str | None = None, comparisons: int = 1, since: int = 0) -> Change | None:
    """Return the change of pass@1 of one task, or of their mean, from evaluation number ``since`` to the last.

    None before the second evaluation. The intervals of both evaluations are added as if they were independent. They
    come from the same prompts and random numbers, so the true interval is narrower. With several ``comparisons`` each
    interval is widened so that all hold at once (Bonferroni, on normal intervals).
    """
    if len(run.evals) < 2:
        return None
    accuracy = mean_accuracy(run, 1) if task is None else task_accuracy(run, task, 1)
    half = math.hypot(accuracy.high[since] - accuracy.low[since], accuracy.high[-1] - accuracy.low[-1]) / 2
    widened = NormalDist().inv_cdf(1 - 0.025 / comparisons) / Z_95
    return Change(float(accuracy.mean[since]), float(accuracy.mean[-1]), half * widened)


def headline(run: RunLogs) -> str:
    """Say in one sentence whether the run is learning."""
    if not run.metrics:
        return "No step is finished yet."
    at = f"step {run.metrics[-1]['step']:,}"
    if not run.tasks:
        return f"At {at}. Whether it learns is not known: nothing is held out; set data.eval."
    note = left_out(max(row.get(f"{task}/left_out", 0.0) for row in run.evals for task in run.tasks))
    change = held_out_change(run)
    if change is None:
        (value,) = mean_accuracy(run, 1).mean
        return f"At {at}. Whether it learns is not known yet: one evaluation so far, held-out pass@1 {value:.3f}{note}."
    tasks = "" if len(run.tasks) == 1 else f" (mean of {len(run.tasks)} tasks)"
    says = "Learning" if change.low > 0 else "Getting worse" if change.high < 0 else "No significant change"
    last = f"step {run.evals[-1]['step']:,}, {run.evals[-1]['rollouts/generated']:,} rollouts"
    return f"{says}: held-out pass@1{tasks} {change.text}{note}, at {last}."
