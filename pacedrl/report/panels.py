"""Plots of what is logged at every step: what each shows, in which unit, and what to look for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pacedrl.intervals import mean_interval
from pacedrl.report.run import Floats, RunLogs, Variant
from pacedrl.report.series import chance_error_by_step, smoothed, thinned, window_of
from pacedrl.report.style import DASHES, SERIES, SVG_DASHES, new_axes

GRID_POINTS = 80
"""Number of points of the mean over several seeds."""
SEEDS_NOTE = "thin: each run; band: 95% interval of the mean over seeds"


Quantity = str | Callable[[RunLogs], Floats]
"""A number for each row of metrics.jsonl: the name of a metric, or a function of the logs."""


@dataclass(frozen=True)
class Panel:
    """One figure for a single variant; for several variants, one figure for each quantity, by label."""

    id: str
    title: str
    unit: str
    quantities: dict[str, Quantity]
    caption: str
    symptom: str
    absent: str = "not logged"
    """Why there may be nothing to draw."""
    limits: tuple[float | None, float | None] = (0.0, None)


@dataclass(frozen=True)
class Key:
    """An entry of a legend, which the page sets as text: ``series`` is the number of its colour and dash."""

    label: str
    series: int
    shape: Literal["line", "solid", "area", "background"] = "line"
    """``solid``: a line without dashes; ``background``: a thin grey line, whatever the series."""

    @property
    def colour(self) -> str:
        return "--muted" if self.shape == "background" else f"--s{self.series + 1}"

    @property
    def width(self) -> int:
        return {"line": 3, "solid": 3, "area": 10, "background": 1}[self.shape]

    @property
    def dashes(self) -> str:
        return SVG_DASHES[self.series] if self.shape == "line" else "none"


@dataclass(frozen=True)
class Plot:
    """A figure with its texts. Without a ``figure`` the caption says why there is none."""

    id: str
    title: str
    caption: str
    symptom: str | None
    """Its paragraph in the guide, if there is one."""
    figure: Any = None
    keys: list[Key] = field(default_factory=list)


PANELS = [
    Panel(
        "reward",
        "Reward and mixed groups",
        "reward; share",
        {"mean reward": "reward/mean", "share of groups with different rewards": "reward/mixed_groups"},
        "Mixed groups teach most (for the GRPO family, only they do): look for a high share. With selection by "
        "difficulty, the reward stays near the target while there are prompts near it, even if the policy "
        "learns.",
        "no-mixed-groups",
        "no step has a reward",
        (0.0, 1.0),
    ),
    Panel(
        "error",
        "Error of the estimate",
        "accuracy",
        {
            "mean |estimate − observed|": "accuracy/mae",
            "what chance alone would give": chance_error_by_step,
            "bias: mean (estimate − observed)": "accuracy/bias",
        },
        "The error should fall towards what the sampling of completions gives by chance, and the bias to 0. If the "
        "bias stays above 0, the estimate lags behind.",
        "not-calibrated",
        "the recipe estimates no accuracies",
        (None, None),
    ),
    Panel(
        "kl",
        "β·KL(π_old‖π_θ)",
        "accuracy",
        {"β·KL": "kl/old_beta"},
        "β·log Z overstates accuracy by this much; the method wants it below about 0.004. Values around 0 come from "
        "rounding and from the gap between sampler and trainer.",
        "kl-large",
        "the objective has no β",
        (None, None),
    ),
    Panel(
        "kl-reference",
        "KL to the initial policy",
        "nats per token",
        {"KL(π_θ‖π_initial)": "kl/reference"},
        "The distance of the policy from the initial one. It should grow slowly and level off.",
        "not-learning",
        "it is logged only if the objective reads the initial policy",
    ),
    Panel(
        "stale",
        "What the estimates rest on",
        "share of all prompts",
        {"estimate is stale": "estimator/stale", "was sampled at least once": "selection/coverage"},
        "An estimate is stale if its log Z or its completions are more than 20 steps old. Look for a share that stays "
        "low; the other line shows how much of the training set was ever used.",
        "stale-estimates",
        "the recipe estimates nothing",
        (0.0, 1.0),
    ),
    Panel(
        "entropy",
        "Entropy",
        "nats per token",
        {"entropy of the policy": "entropy"},
        "It falls as the policy becomes sure. A fall to almost 0 while rewards are still low is a collapse.",
        "entropy-collapse",
    ),
    Panel(
        "length",
        "Completion length",
        "tokens",
        {"mean": "completion/length_mean", "longest": "completion/length_max"},
        "A mean that creeps towards sampling.max_new_tokens ends in truncation. If it drops, look for a shortcut.",
        "truncated",
    ),
    Panel(
        "truncated",
        "Truncated and unjudged",
        "share of completions",
        {
            "cut at sampling.max_new_tokens": "completion/truncated",
            "the verifier failed": lambda run: run.series("verifier/errors") / run.series("rollouts/step"),
        },
        "Both should stay near 0: a cut completion counts as wrong, one that the verifier fails on is left out.",
        "truncated",
        limits=(0.0, 1.0),
    ),
    Panel(
        "gap",
        "Sampler and trainer",
        "nats per token",
        {"mean |log-prob gap|": "mismatch/logprob_mean"},
        "About 1e-6 in float32 and 0.01 in bfloat16. More than 0.05 means that they compute different things.",
        "sampler-trainer-gap",
    ),
]


def draw_panel(panel: Panel, variants: Sequence[Variant]) -> list[Plot]:
    """Draw the figures of a panel. If nothing was logged, the only plot has no figure and says why."""
    having = {
        label: [(i, variant) for i, variant in enumerate(variants) if any(_has(run, quantity) for run in variant.runs)]
        for label, quantity in panel.quantities.items()
    }
    known = [label for label, places in having.items() if places]
    if not known:
        return [Plot(panel.id, panel.title, f"Not drawn: {panel.absent}.", panel.symptom)]
    if len(variants) == 1:
        lines = [(Key(label, i), variants[0], panel.quantities[label]) for i, label in enumerate(known)]
        return [_drawn(panel, panel.id, panel.title, lines)]
    plots = []
    for i, label in enumerate(known):
        title = panel.title if len(known) == 1 else f"{panel.title}: {label}"
        lines = [(Key(variant.label, place), variant, panel.quantities[label]) for place, variant in having[label]]
        plots.append(_drawn(panel, panel.id if i == 0 else f"{panel.id}-{i}", title, lines))
    return plots


def values(run: RunLogs, quantity: Quantity) -> Floats:
    """Return the quantity at every step of the run."""
    return run.series(quantity) if isinstance(quantity, str) else quantity(run)


def _has(run: RunLogs, quantity: Quantity) -> bool:
    return bool(len(run.metrics)) and not np.isnan(values(run, quantity)).all()


def _drawn(panel: Panel, name: str, title: str, lines: Sequence[tuple[Key, Variant, Quantity]]) -> Plot:
    figure, axes = new_axes("step", panel.unit)
    window = max(_draw_line(axes, variant, quantity, key.series) for key, variant, quantity in lines)
    axes.set_ylim(*panel.limits)
    notes = [f"bold: mean over {window} steps; faint: every step"] if window > 1 else []
    if any(len(variant.runs) > 1 for _, variant, _ in lines):
        notes.append(SEEDS_NOTE)
    caption = panel.caption + (f" ({'; '.join(notes)}.)" if notes else "")
    return Plot(name, title, caption, panel.symptom, figure, [key for key, *_ in lines])


def _draw_line(axes: Any, variant: Variant, quantity: Quantity, series: int) -> int:
    """Draw a run smoothed over its raw values, or the mean over seeds with its interval; return the window."""
    colour, dash = SERIES[series], DASHES[series]
    window = window_of(max(len(run.metrics) for run in variant.runs))
    curves = [(run.steps, values(run, quantity)) for run in variant.runs if len(run.metrics)]
    several = len(curves) > 1
    for x, y in curves:
        if window > 1 or several:
            raw = thinned(y)
            axes.plot(x[raw], y[raw], color=colour, linewidth=0.6, alpha=0.3)
    if several:
        draw_mean(axes, [(x, smoothed(y, window)) for x, y in curves], colour, dash)
    elif curves:
        x, y = curves[0]
        y = smoothed(y, window) if window > 1 else y
        kept = thinned(y)
        axes.plot(x[kept], y[kept], color=colour, linestyle=dash, marker="." if len(kept) < 3 else None)
    return window


def draw_mean(axes: Any, curves: Sequence[tuple[Floats, Floats]], colour: str, dash: Any) -> None:
    """Draw the mean of several curves, linear between their points, as far as all go, with its 95% interval."""
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
        axes.dataLim.set(limits)  # with two seeds the band is many times as wide as their gap: it may leave the figure
        axes.autoscale_view()
