"""Plots of what is logged at every step: what each shows, in which unit, and what to look for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pacedrl.intervals import mean_interval
from pacedrl.report.figures import chance_error, judged, smoothed, thinned, window_of
from pacedrl.report.run import Floats, Line, RunLogs
from pacedrl.report.style import DASHES, SERIES, new_axes

GRID_POINTS = 80
"""Of the mean over several seeds."""
HELD_RUNS = "thin: each run; band: 95% interval of the mean over seeds"


@dataclass(frozen=True)
class Quantity:
    """Something at every step; ``of`` gives one number for each row of metrics.jsonl."""

    label: str
    of: Callable[[RunLogs], Floats]


@dataclass(frozen=True)
class Panel:
    """One figure of a single configuration; of several, one for each quantity."""

    id: str
    title: str
    unit: str
    quantities: list[Quantity]
    caption: str
    symptom: str
    absent: str
    """Why there may be nothing to draw."""
    limits: tuple[float | None, float | None] = (0.0, None)


@dataclass(frozen=True)
class Key:
    """An entry of a legend, which the page sets in text: ``series`` picks colour and dash."""

    label: str
    series: int
    shape: Literal["line", "solid", "area", "background"] = "line"
    """``solid``: a line without its dashes; ``background``: a thin grey line, whatever the series."""


@dataclass(frozen=True)
class Plot:
    """A figure and what stands around it. Without a ``figure`` the caption says why there is none."""

    id: str
    title: str
    caption: str
    symptom: str | None
    """Its paragraph in the guide; None: there is none."""
    figure: Any = None
    keys: list[Key] = field(default_factory=list)


def metric(name: str) -> Callable[[RunLogs], Floats]:
    return lambda run: run.series(name)


def _error_share(run: RunLogs) -> Floats:
    return run.series("verifier/errors") / run.series("rollouts/step")


def chance_error_by_step(run: RunLogs) -> Floats:
    """Mean |p̄ − p̂| that the sampling of completions alone would give at each step; NaN without estimates."""
    prompts = judged(run.groups)
    floor, steps = chance_error(prompts), run.steps
    place = np.searchsorted(steps, prompts.step)
    inside = (place < len(steps)) & (steps[place.clip(max=len(steps) - 1)] == prompts.step)
    total = np.bincount(place[inside], floor[inside], len(steps))
    count = np.bincount(place[inside], minlength=len(steps))
    mean: Floats = np.divide(total, count, out=np.full(len(steps), np.nan), where=count > 0)
    return mean


PANELS = [
    Panel(
        "reward",
        "Reward and mixed groups",
        "reward; share",
        [
            Quantity("mean reward", metric("reward/mean")),
            Quantity("share of groups with different rewards", metric("reward/mixed_groups")),
        ],
        "Mixed groups teach most (for the GRPO family, only they do): look for a high share. Where prompts are "
        "selected by difficulty the reward stays near the target for as long as there are prompts near it, however "
        "much is learned.",
        "no-mixed-groups",
        "no step has a reward",
        (0.0, 1.0),
    ),
    Panel(
        "error",
        "Error of the estimate",
        "accuracy",
        [
            Quantity("mean |estimate − observed|", metric("accuracy/mae")),
            Quantity("what chance alone would give", chance_error_by_step),
            Quantity("bias: mean (estimate − observed)", metric("accuracy/bias")),
        ],
        "The error should fall towards what the sampling of completions gives by chance, and the bias to 0; a bias "
        "that stays above 0 is an estimate that lags behind.",
        "not-calibrated",
        "the recipe estimates no accuracies",
        (None, None),
    ),
    Panel(
        "kl",
        "β·KL(π_old‖π_θ)",
        "accuracy",
        [Quantity("β·KL", metric("kl/old_beta"))],
        "By this much β·log Z overstates accuracy; the method wants it below about 0.004. Around 0 it is rounding, and "
        "the gap between sampler and trainer.",
        "kl-large",
        "the objective has no β",
        (None, None),
    ),
    Panel(
        "kl-reference",
        "KL to the initial policy",
        "nats per token",
        [Quantity("KL(π_θ‖π_initial)", metric("kl/reference"))],
        "How far the policy has moved from where it began: it should grow slowly and level off.",
        "not-learning",
        "it is logged only where the objective reads the initial policy",
    ),
    Panel(
        "stale",
        "What the estimates rest on",
        "share of all prompts",
        [
            Quantity("estimate is stale", metric("estimator/stale")),
            Quantity("was sampled at least once", metric("selection/coverage")),
        ],
        "Stale: resting on a log Z or on completions of more than 20 steps ago. Look for a share that stays low; "
        "coverage says how much of the training set was ever used.",
        "stale-estimates",
        "the recipe estimates nothing",
        (0.0, 1.0),
    ),
    Panel(
        "entropy",
        "Entropy",
        "nats per token",
        [Quantity("entropy of the policy", metric("entropy"))],
        "It falls as the policy becomes sure; a fall to almost nothing while rewards are still low is a collapse.",
        "entropy-collapse",
        "not logged",
    ),
    Panel(
        "length",
        "Completion length",
        "tokens",
        [
            Quantity("mean", metric("completion/length_mean")),
            Quantity("longest", metric("completion/length_max")),
        ],
        "A mean that creeps towards sampling.max_new_tokens ends in truncation; one that drops may be a shortcut.",
        "truncated",
        "not logged",
    ),
    Panel(
        "truncated",
        "Truncated and unjudged",
        "share of completions",
        [
            Quantity("cut at sampling.max_new_tokens", metric("completion/truncated")),
            Quantity("the verifier failed", _error_share),
        ],
        "Both should stay near 0: what is cut counts as wrong, what the verifier fails on is left out.",
        "truncated",
        "not logged",
        (0.0, 1.0),
    ),
    Panel(
        "gap",
        "Sampler and trainer",
        "nats per token",
        [Quantity("mean |log-prob gap|", metric("mismatch/logprob_mean"))],
        "About 1e-6 in float32 and 0.01 in bfloat16; more than 0.05 means that they compute different things.",
        "sampler-trainer-gap",
        "not logged",
    ),
]


def draw_panel(panel: Panel, lines: Sequence[Line]) -> list[Plot]:
    """Its figures; where nothing was logged one without a figure, which says why."""
    known = [q for q in panel.quantities if any(_is_known(q, run) for line in lines for run in line.runs)]
    if not known:
        return [Plot(panel.id, panel.title, f"Not drawn: {panel.absent}.", panel.symptom)]
    if len(lines) == 1:
        return [_drawn(panel, panel.id, panel.title, [(Key(q.label, i), lines[0], q) for i, q in enumerate(known)])]
    plots = []
    for i, quantity in enumerate(known):
        title = panel.title if len(known) == 1 else f"{panel.title}: {quantity.label}"
        having = [i for i, line in enumerate(lines) if any(_is_known(quantity, run) for run in line.runs)]
        shown = [(Key(lines[i].label, i), lines[i], quantity) for i in having]
        plots.append(_drawn(panel, panel.id if i == 0 else f"{panel.id}-{i}", title, shown))
    return plots


def _is_known(quantity: Quantity, run: RunLogs) -> bool:
    return bool(len(run.metrics)) and not np.isnan(quantity.of(run)).all()


def _drawn(panel: Panel, name: str, title: str, shown: Sequence[tuple[Key, Line, Quantity]]) -> Plot:
    figure, axes = new_axes("step", panel.unit)
    window = max(draw_line(axes, line, quantity.of, key.series) for key, line, quantity in shown)
    axes.set_ylim(*panel.limits)
    notes = []
    if window > 1:
        notes.append(f"bold: mean over {window} steps; faint: every step")
    if any(len(line.runs) > 1 for _, line, _ in shown):
        notes.append(HELD_RUNS)
    caption = panel.caption + (f" ({'; '.join(notes)}.)" if notes else "")
    return Plot(name, title, caption, panel.symptom, figure, [key for key, *_ in shown])


def draw_line(axes: Any, line: Line, of: Callable[[RunLogs], Floats], series: int) -> int:
    """One line: a run smoothed over its raw values, or the mean over seeds with its interval. The window used."""
    colour, dash = SERIES[series], DASHES[series]
    window = window_of(max(len(run.metrics) for run in line.runs))
    curves = [(run.steps, of(run)) for run in line.runs if len(run.metrics)]
    several = len(curves) > 1
    for x, y in curves:
        if window > 1 or several:
            raw = thinned(y)
            axes.plot(x[raw], y[raw], color=colour, linewidth=0.6, alpha=0.3)
    if several:
        mean_over_seeds(axes, [(x, smoothed(y, window)) for x, y in curves], colour, dash)
    elif curves:
        x, y = curves[0]
        y = smoothed(y, window) if window > 1 else y
        kept = thinned(y)
        axes.plot(x[kept], y[kept], color=colour, linestyle=dash, marker="." if len(kept) < 3 else None)
    return window


def mean_over_seeds(axes: Any, curves: Sequence[tuple[Floats, Floats]], colour: str, dash: Any) -> None:
    """Mean of several curves, straight between their points, as far as all go, and its 95% interval as a band."""
    known = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in curves]
    known = [(x, y) for x, y in known if len(x)]
    if not known:
        return
    grid = np.linspace(max(x[0] for x, _ in known), min(x[-1] for x, _ in known), GRID_POINTS)
    values = np.array([np.interp(grid, x, y) for x, y in known])
    axes.plot(grid, values.mean(axis=0), color=colour, linestyle=dash)
    if len(known) > 1:
        limits = axes.dataLim.frozen()
        ends = [mean_interval(column.tolist()) for column in values.T]
        axes.fill_between(grid, [e.low for e in ends], [e.high for e in ends], color=colour, alpha=0.15, linewidth=0)
        axes.dataLim.set(limits)  # of two seeds it is many times as wide as they lie apart: it may leave the figure
        axes.autoscale_view()
