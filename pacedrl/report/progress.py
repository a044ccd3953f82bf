"""Whether a run has got anywhere: held-out accuracy between two evaluations, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pacedrl.report.figures import Z_95, mean_curve, task_curve
from pacedrl.report.run import RunLogs
from pacedrl.view import left_out


@dataclass(frozen=True)
class Change:
    """Of held-out accuracy, from an earlier evaluation to the last, with a 95% interval."""

    before: float
    after: float
    half: float

    @property
    def low(self) -> float:
        return self.after - self.before - self.half

    @property
    def high(self) -> float:
        return self.after - self.before + self.half

    @property
    def text(self) -> str:
        interval = f"95% interval {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.before:.3f} → {self.after:.3f} ({self.after - self.before:+.3f}, {interval})"


def held_out_change(run: RunLogs, task: str | None = None, comparisons: int = 1, since: int = 0) -> Change | None:
    """Of one task or their mean, since an evaluation, the first or another; None before the second evaluation.

    The intervals of both evaluations are added as if they were independent. They are of the same prompts and random
    numbers, so that the true interval is narrower. With several ``comparisons`` each is widened for all to hold at once
    (Bonferroni, on normal intervals).
    """
    if len(run.evals) < 2:
        return None
    curve = mean_curve(run, 1) if task is None else task_curve(run, task, 1)
    half = math.hypot(curve.high[since] - curve.low[since], curve.high[-1] - curve.low[-1]) / 2
    widened = _normal_quantile(1 - 0.025 / comparisons) / Z_95
    return Change(float(curve.mean[since]), float(curve.mean[-1]), half * widened)


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)


def headline(run: RunLogs) -> str:
    """Whether it is learning, in a sentence."""
    if not run.metrics:
        return "No step is finished yet."
    at = f"step {run.metrics[-1]['step']:,}"
    if not run.tasks:
        return f"At {at}. Whether it learns is not known: nothing is held out; set data.eval."
    change = held_out_change(run)
    if change is None:
        (value,) = mean_curve(run, 1).mean
        return (
            f"At {at}. Whether it learns is not known yet: one evaluation so far, held-out pass@1 {value:.3f}"
            f"{_left_out(run)}."
        )
    tasks = "" if len(run.tasks) == 1 else f" (mean of {len(run.tasks)} tasks)"
    says = "Learning" if change.low > 0 else "Getting worse" if change.high < 0 else "No change told from chance"
    last = f"step {run.evals[-1]['step']:,}, {run.evals[-1]['rollouts/generated']:,} rollouts"
    return f"{says}: held-out pass@1{tasks} {change.text}{_left_out(run)}, at {last}."


def _left_out(run: RunLogs) -> str:
    """What to say beside held-out accuracy where completions are missing from it."""
    return left_out(max(row.get(f"{task}/left_out", 0.0) for row in run.evals for task in run.tasks))
