"""What the logs say, as numbers to draw or to judge: no drawing here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import POOL_BINS
from pacedrl.report.run import Floats, Row, RunLogs, column

Indices = NDArray[np.intp]

MOST_POINTS = 400
"""Of a line that is drawn: more than there are pixels."""
MOST_COLUMNS = 100
"""Of the heat map."""
Z_95 = 1.96


def thinned(y: Floats, points: int = MOST_POINTS) -> Indices:
    """Indices of at most ``points`` of a line that keep its shape: the lowest and highest of each of equal stretches,
    and both ends. NaNs are left out."""
    known = np.flatnonzero(~np.isnan(y))
    if len(known) <= points:
        return known
    kept = {int(known[0]), int(known[-1])}
    for stretch in np.array_split(known, points // 2 - 1):
        kept |= {int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])}
    return np.array(sorted(kept))


def window_of(steps: int) -> int:
    """Steps that a smoothed line averages over: a twentieth of the run, odd; 1, which is none, for short ones."""
    return steps // 20 // 2 * 2 + 1


def smoothed(y: Floats, window: int) -> Floats:
    """Centred moving mean over what is known in the window, shorter at the ends; NaN where nothing is."""
    known = ~np.isnan(y)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, y, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    mean: Floats = np.divide(total, count, out=np.full(len(y), np.nan), where=count > 0.5)
    return mean


@dataclass(frozen=True)
class Curve:
    """Held-out accuracy at each evaluation and its 95% interval."""

    rollouts: Floats
    mean: Floats
    low: Floats
    high: Floats


def task_curve(run: RunLogs, task: str, k: int) -> Curve:
    """pass@``k`` of one task, intervals (bootstrap over prompts) as logged."""
    name = f"{task}/pass@{k}"
    columns = (column(run.evals, key) for key in ("rollouts/generated", name, f"{name}_low", f"{name}_high"))
    return Curve(*columns)


def mean_curve(run: RunLogs, k: int) -> Curve:
    """Mean over the tasks. Its interval is that of a mean of independent ones, each of half its interval's width."""
    curves = [task_curve(run, task, k) for task in run.tasks]
    mean = np.mean([curve.mean for curve in curves], axis=0)
    half = np.sqrt(np.sum([np.square((curve.high - curve.low) / 2) for curve in curves], axis=0)) / len(curves)
    return Curve(curves[0].rollouts, mean, (mean - half).clip(0, 1), (mean + half).clip(0, 1))


def evaluated_ks(run: RunLogs) -> list[int]:
    """The ks that every task's pass@k was logged for at every evaluation, ascending."""
    if not run.evals:
        return []
    task = run.tasks[0]
    prefix = f"{task}/pass@"
    found = [name.removeprefix(prefix) for name in run.evals[0] if name.startswith(prefix)]
    ks = sorted(int(text) for text in found if text.isdigit())
    return [k for k in ks if all(f"{name}/pass@{k}" in row for name in run.tasks for row in run.evals)]


@dataclass(frozen=True)
class Judged:
    """Every sampled prompt with an estimate and a verdict, one entry each: its estimate before its completions were
    seen, their mean reward, how many were judged, and their sample variance (NaN of one)."""

    step: Floats
    estimate: Floats
    observed: Floats
    trials: Floats
    variance: Floats

    def of(self, chosen: Indices | NDArray[np.bool_]) -> Judged:
        return Judged(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def joined(self, others: Sequence[Judged]) -> Judged:
        """These and those of other runs."""
        names = self.__dataclass_fields__
        return Judged(*(np.concatenate([getattr(each, name) for each in (self, *others)]) for name in names))

    def since(self, step: float) -> Judged:
        """Those of later steps."""
        return self.of(self.step > step)

    def __len__(self) -> int:
        return len(self.step)


def judged(groups: Sequence[Row]) -> Judged:
    """Out of the rows of groups.jsonl; empty for recipes that estimate nothing."""
    parts = [_judged_row(row) for row in groups if row["rewards"]]
    fields = np.concatenate(parts, axis=1) if parts else np.empty((5, 0))
    known = (fields[3] > 0) & ~np.isnan(fields[1])
    return Judged(*fields[:, known])


def _judged_row(row: Row) -> Floats:
    """The fields of `Judged` of one step's prompts, [5, P], whether judged or not."""
    reward_PG = np.array(row["rewards"], dtype=np.float64)  # None becomes NaN
    known_PG = ~np.isnan(reward_PG)
    trials_P = known_PG.sum(axis=1)
    mean_P = np.where(known_PG, reward_PG, 0.0).sum(axis=1) / np.maximum(trials_P, 1)
    square_P = np.where(known_PG, np.square(reward_PG - mean_P[:, None]), 0.0).sum(axis=1)
    variance_P = np.where(trials_P > 1, square_P / np.maximum(trials_P - 1, 1), np.nan)
    estimate_P = np.array(row["accuracy_estimate"], dtype=np.float64)
    return np.stack([np.full(len(trials_P), float(row["step"])), estimate_P, mean_P, trials_P, variance_P])


def chance_error(prompts: Judged) -> Floats:
    """E|p̄ − p̂| of each prompt if its accuracy were p̂ exactly (clipped to [0, 1]): the mean deviation of a binomial.

    That of rewards of 0 and 1; partial rewards spread less, so that of these it is an upper bound.
    """
    floor = np.zeros(len(prompts))
    for n in np.unique(prompts.trials):
        rows = prompts.trials == n
        p = prompts.estimate[rows].clip(0.0, 1.0)[:, None]
        right = np.arange(int(n) + 1)
        ways = np.array([math.comb(int(n), int(k)) for k in right], dtype=np.float64)
        floor[rows] = (ways * p**right * (1 - p) ** (n - right) * np.abs(right / n - p)).sum(axis=1)
    return floor


@dataclass(frozen=True)
class Reliability:
    """Prompts in bins of the estimate, as many in each: mean estimate, mean observed accuracy and its 95% interval."""

    estimate: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Floats


def reliability(prompts: Judged, bins: int = 10, fewest: int = 10) -> Reliability:
    """Bins of equal numbers of prompts, at most ``bins``, each of ``fewest`` or more; equal estimates stay together.

    Of one prompt or more. Wilson's interval with a prompt as one observation, wide enough whatever their accuracies.
    """
    bins = max(1, min(bins, len(prompts) // fewest))
    order = np.argsort(prompts.estimate, kind="stable")
    changes = np.flatnonzero(np.diff(prompts.estimate[order])) + 1  # where another estimate begins
    starts = [0]
    for i in range(1, bins):
        ahead = changes[changes >= max(len(order) * i // bins, starts[-1] + fewest)]
        if len(ahead) and len(order) - ahead[0] >= fewest:
            starts.append(int(ahead[0]))
    parts = np.split(order, starts[1:])
    estimate = np.array([prompts.estimate[part].mean() for part in parts])
    observed = np.array([prompts.observed[part].mean() for part in parts])
    count = np.array([float(len(part)) for part in parts])
    low, high = wilson(observed, count)
    return Reliability(estimate, observed, low, high, count)


def wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Wilson's 95% interval of a share of ``count`` observations."""
    square = Z_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z_95 * np.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return centre - half, centre + half


@dataclass(frozen=True)
class Pool:
    """The distribution of all prompts' estimates over time: ``share`` [POOL_BINS + 2, columns], of the prompts, by bin
    from below 0 to above 1; ``edges`` [columns + 1] in steps."""

    share: Floats
    edges: Floats


def pool(groups: Sequence[Row], columns: int = MOST_COLUMNS) -> Pool | None:
    """Mean over stretches of steps, at most ``columns``; None where no row has it (older runs, no estimates)."""
    rows = [row for row in groups if row.get("pool")]
    if not rows:
        return None
    counts = np.array([[row["pool"]["below"], *row["pool"]["counts"], row["pool"]["above"]] for row in rows], float)
    assert counts.shape[1] == POOL_BINS + 2
    share = counts / counts.sum(axis=1, keepdims=True)
    parts = np.array_split(np.arange(len(rows)), min(columns, len(rows)))
    edges = [rows[part[0]]["step"] - 0.5 for part in parts] + [rows[-1]["step"] + 0.5]
    return Pool(np.array([share[part].mean(axis=0) for part in parts]).T, np.array(edges))


def selected_quartiles(groups: Sequence[Row]) -> tuple[Floats, Floats]:
    """Steps, and [3, steps]: quartile, mean and quartile of the selected prompts' estimates."""
    rows = [row for row in groups if row["accuracy_estimate"] and row["accuracy_estimate"][0] is not None]
    values = [row["accuracy_estimate"] for row in rows]
    spread = [[*np.quantile(v, [0.25]), np.mean(v), *np.quantile(v, [0.75])] for v in values]
    return column(rows, "step"), np.array(spread, dtype=np.float64).reshape(-1, 3).T


def replayed_share(run: RunLogs) -> Floats:
    """Share of each step's trained completions that came out of the replay buffer; NaN where nothing was trained."""
    trained = np.diff(run.series("rollouts/trained"), prepend=0.0)
    replay = run.series("replay/trained")
    share: Floats = np.divide(replay, trained, out=np.full(len(trained), np.nan), where=trained > 0)
    return share


def phases(run: RunLogs) -> dict[str, Floats]:
    """Seconds of each phase at each step, in order; ``other`` is what the phases leave of the step's time."""
    names = ("select", "generate", "verify", "update", "wait", "observe")
    known = {name: np.nan_to_num(run.series(f"time/{name}")) for name in names}
    other = run.series("time/step") - np.sum(list(known.values()), axis=0)
    return known | {"other": np.nan_to_num(other).clip(min=0.0)}
