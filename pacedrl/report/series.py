"""Numbers to draw or to judge, computed from the logs of a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pacedrl.diagnosis.rules import Z_95
from pacedrl.logs import Row
from pacedrl.method.estimator import POOL_BINS
from pacedrl.report.run import Floats, RunLogs, column

Indices = NDArray[np.intp]
JudgedPrompts = np.recarray[Any, Any]
"""Every sampled prompt that has an estimate and a verdict, one record each: ``step``; ``estimate`` of its accuracy
before its completions were seen; ``observed``, the mean reward of the ``trials`` judged completions; and the sample
``variance`` of their rewards, NaN for a single completion."""

MOST_POINTS = 400
"""Maximum number of points of a drawn line, more than it has pixels."""
MOST_COLUMNS = 100
"""Maximum number of columns of the heat map."""


def thinned(y: Floats, points: int = MOST_POINTS) -> Indices:
    """Return indices of at most ``points`` known values that keep the shape of a line.

    They are its ends, and the lowest and the highest value of each of several equal stretches.
    """
    known = np.flatnonzero(~np.isnan(y))
    if len(known) <= points:
        return known
    kept = {int(known[0]), int(known[-1])}
    for stretch in np.array_split(known, points // 2 - 1):
        kept |= {int(stretch[np.argmin(y[stretch])]), int(stretch[np.argmax(y[stretch])])}
    return np.array(sorted(kept))


def window_of(steps: int) -> int:
    """Return the number of steps that a smoothed line averages over: a twentieth of the run, odd, at least 1."""
    return steps // 20 // 2 * 2 + 1


def smoothed(y: Floats, window: int) -> Floats:
    """Return the centred moving mean of the known values, over shorter windows at the ends; NaN where none is known."""
    known = ~np.isnan(y)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, y, 0.0), kernel, "same")
    count = np.convolve(known.astype(float), kernel, "same")
    return _ratio(total, count)


def _ratio(total: NDArray[Any], count: NDArray[Any]) -> Floats:
    """Return total / count; NaN where the count is 0, up to rounding."""
    ratio: Floats = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0.5)
    return ratio


def judged_prompts(groups: Sequence[Row]) -> JudgedPrompts:
    """Read the rows of groups.jsonl; the result is empty for recipes without estimates."""
    parts = [_fields(row) for row in groups if row["rewards"]]
    fields = np.concatenate(parts, axis=1) if parts else np.empty((5, 0))
    known = (fields[3] > 0) & ~np.isnan(fields[1])
    names = ("step", "estimate", "observed", "trials", "variance")
    return np.rec.fromarrays(list(fields[:, known]), dtype=[(name, np.float64) for name in names])


def _fields(row: Row) -> Floats:
    """Return the fields of `JudgedPrompts` for the prompts of one step, [5, P], whether judged or not."""
    reward_PG = np.array(row["rewards"], dtype=np.float64)  # None becomes NaN
    known_PG = ~np.isnan(reward_PG)
    trials_P = known_PG.sum(axis=1)
    mean_P = np.where(known_PG, reward_PG, 0.0).sum(axis=1) / np.maximum(trials_P, 1)
    square_P = np.where(known_PG, np.square(reward_PG - mean_P[:, None]), 0.0).sum(axis=1)
    variance_P = np.where(trials_P > 1, square_P / np.maximum(trials_P - 1, 1), np.nan)
    estimate_P = np.array(row["accuracy_estimate"], dtype=np.float64)
    return np.stack([np.full(len(trials_P), float(row["step"])), estimate_P, mean_P, trials_P, variance_P])


def chance_error(prompts: JudgedPrompts) -> Floats:
    """Return E|p̄ − p̂| of each prompt if its accuracy were exactly p̂ (clipped to [0, 1]).

    This is the mean deviation of a binomial, exact for rewards of 0 and 1. Partial rewards spread less, so it is an
    upper bound for them.
    """
    floor = np.zeros(len(prompts))
    for n in np.unique(prompts.trials):
        rows = prompts.trials == n
        p = prompts.estimate[rows].clip(0.0, 1.0)[:, None]
        right = np.arange(int(n) + 1)
        ways = np.array([math.comb(int(n), int(k)) for k in right], dtype=np.float64)
        floor[rows] = (ways * p**right * (1 - p) ** (n - right) * np.abs(right / n - p)).sum(axis=1)
    return floor


def chance_error_by_step(run: RunLogs) -> Floats:
    """Return the mean of `chance_error` at each step; NaN at steps without estimates."""
    prompts = judged_prompts(run.groups)
    floor, steps = chance_error(prompts), run.steps
    place = np.searchsorted(steps, prompts.step)
    inside = (place < len(steps)) & (steps[place.clip(max=len(steps) - 1)] == prompts.step)
    total = np.bincount(place[inside], floor[inside], len(steps))
    return _ratio(total, np.bincount(place[inside], minlength=len(steps)))


@dataclass(frozen=True)
class Reliability:
    """Observed accuracy of prompts in bins of the estimate: means, 95% interval, and prompts per bin."""

    estimate: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Floats


def reliability(prompts: JudgedPrompts, bins: int = 10, fewest: int = 10) -> Reliability:
    """Sort at least one prompt into at most ``bins`` bins of equal size, of at least ``fewest`` prompts each.

    Prompts with equal estimates share a bin. Wilson's interval counts a prompt as one observation, which makes it wide
    enough whatever the accuracies of the prompts are.
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
    return Reliability(estimate, observed, *_wilson(observed, count), count)


def _wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Return Wilson's 95% interval of a share of ``count`` observations."""
    square = Z_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = Z_95 * np.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return centre - half, centre + half


def estimate_histogram(groups: Sequence[Row], columns: int = MOST_COLUMNS) -> tuple[Floats, Floats] | None:
    """Return the distribution of all prompts' estimates over time; None if no row has a histogram.

    The first array is the share of the prompts, [POOL_BINS + 2, columns], in bins from below 0 to above 1; the second
    are the steps at which the columns begin and end, [columns + 1]. A column is the mean over a stretch of steps.
    """
    rows = [row for row in groups if row.get("pool")]
    if not rows:
        return None
    counts = np.array([[row["pool"]["below"], *row["pool"]["counts"], row["pool"]["above"]] for row in rows], float)
    assert counts.shape[1] == POOL_BINS + 2
    share = counts / counts.sum(axis=1, keepdims=True)
    parts = np.array_split(np.arange(len(rows)), min(columns, len(rows)))
    edges = [rows[part[0]]["step"] - 0.5 for part in parts] + [rows[-1]["step"] + 0.5]
    return np.array([share[part].mean(axis=0) for part in parts]).T, np.array(edges)


def selected_quartiles(groups: Sequence[Row]) -> tuple[Floats, Floats]:
    """Return the steps, and lower quartile, mean and upper quartile of the selected prompts' estimates, [3, steps]."""
    rows = [row for row in groups if row["accuracy_estimate"] and row["accuracy_estimate"][0] is not None]
    values = [row["accuracy_estimate"] for row in rows]
    spread = [[np.quantile(v, 0.25), np.mean(v), np.quantile(v, 0.75)] for v in values]
    return column(rows, "step"), np.array(spread, dtype=np.float64).reshape(-1, 3).T


def replayed_share(run: RunLogs) -> Floats:
    """Return the share of replayed completions in what each step trained on; NaN where nothing was trained on."""
    trained = np.diff(run.series("rollouts/trained"), prepend=0.0)
    return _ratio(run.series("replay/trained"), trained)


def phases(run: RunLogs) -> dict[str, Floats]:
    """Return the seconds of each phase at each step, in order; ``other`` is the rest of the step's time."""
    names = ("select", "generate", "verify", "update", "wait", "observe")
    known = {name: np.nan_to_num(run.series(f"time/{name}")) for name in names}
    other = run.series("time/step") - np.sum(list(known.values()), axis=0)
    return known | {"other": np.nan_to_num(other).clip(min=0.0)}
