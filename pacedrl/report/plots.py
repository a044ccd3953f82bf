"""All plots of a page, in the order in which they stand there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pacedrl.method.estimator import POOL_BINS
from pacedrl.method.selection import QUANTILES
from pacedrl.report.figures import (
    Curve,
    evaluated_ks,
    judged,
    mean_curve,
    phases,
    pool,
    reliability,
    selected_quartiles,
    task_curve,
    thinned,
)
from pacedrl.report.panels import HELD_RUNS, PANELS, Key, Plot, draw_panel, mean_over_seeds
from pacedrl.report.run import Floats, Line, RunLogs
from pacedrl.report.style import DASHES, FOREGROUND, MUTED, SERIES, new_axes
from pacedrl.report.text import plain

FIRST, SECOND, *REST = PANELS
"""Reward, the error of the estimate, and all others."""
MOST_SHARE = 0.5
"""Of the prompts in one bin of the heat map: more is drawn the same."""
SLOW_STEP = 3.0
"""Times the median: what a step takes beyond that leaves the figure of times."""


def all_plots(lines: Sequence[Line]) -> list[Plot]:
    """Of one configuration or several, which then share figures. Runs without steps draw nothing."""
    return [
        *held_out(lines),
        *draw_panel(FIRST, lines),
        reliability_plot(lines),
        *draw_panel(SECOND, lines),
        *pool_plots(lines),
        *replay_plots(lines),
        *(plot for panel in REST for plot in draw_panel(panel, lines)),
        time_plot(lines),
    ]


def held_out(lines: Sequence[Line]) -> list[Plot]:
    """pass@k of the held-out tasks against completions generated, one figure for each k."""
    runs = [run for line in lines for run in line.runs]
    ks = sorted({k for run in runs for k in evaluated_ks(run)})
    if not ks:
        return [Plot("pass-1", "Held-out pass@1", "Not drawn: nothing was evaluated (data.eval).", "not-learning")]
    return [_held_out(lines, k) for k in ks]


def _held_out(lines: Sequence[Line], k: int) -> Plot:
    figure, axes = new_axes("completions generated", f"held-out pass@{k}")
    lines = [line for line in lines if any(k in evaluated_ks(run) for run in line.runs)]
    keys = []
    for i, line in enumerate(lines):
        runs = [run for run in line.runs if k in evaluated_ks(run)]
        colour, dash = SERIES[i], DASHES[i]
        if len(runs) > 1:
            curves = [mean_curve(run, k) for run in runs]
            for curve in curves:
                axes.plot(curve.rollouts, curve.mean, color=colour, linewidth=0.6, alpha=0.5)
            mean_over_seeds(axes, [(curve.rollouts, curve.mean) for curve in curves], colour, dash)
        else:
            if len(lines) == 1:
                for task in runs[0].tasks:
                    curve = task_curve(runs[0], task, k)
                    axes.plot(curve.rollouts, curve.mean, color=MUTED, linewidth=0.7, alpha=0.7)
            _with_interval(axes, mean_curve(runs[0], k), colour, dash)
        keys.append(Key(line.label if len(lines) > 1 else "mean of tasks", i))
    axes.set_ylim(0.0, 1.0)
    if len(lines) == 1 and len(lines[0].runs) == 1 and len(lines[0].runs[0].tasks) > 1:
        _name_ends(axes, lines[0].runs[0], k)
        keys.append(Key("each task", 0, "background"))
    what = "The chance that one completion is right" if k == 1 else f"The chance that one of {k} is right"
    note = "Bands are 95% intervals over prompts."
    if any(len(line.runs) > 1 for line in lines):
        note = HELD_RUNS[0].upper() + HELD_RUNS[1:] + "."
    look = "it should rise" if k == 1 else "one that falls while pass@1 rises is diversity lost"
    symptom = "not-learning" if k == 1 else "entropy-collapse"
    caption = f"{what}, on prompts that are not trained on: {look}. {note}"
    return Plot(f"pass-{k}", f"Held-out pass@{k}", caption, symptom, figure, keys)


def _with_interval(axes: Any, curve: Curve, colour: str, dash: Any) -> None:
    axes.fill_between(curve.rollouts, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(curve.rollouts, curve.mean, color=colour, linestyle=dash, marker=".", markersize=5)


def _name_ends(axes: Any, run: RunLogs, k: int) -> None:
    """Tasks' names at the ends of their lines, moved apart where they would overlap."""
    ends = sorted((task_curve(run, task, k).mean[-1], task) for task in run.tasks)
    if len(ends) > 10:
        return
    gap = 0.085
    places: list[float] = []
    for value, _ in ends:
        places.append(max(value, places[-1] + gap if places else -1.0))
    top = 1.0
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], top)
        top = places[i] - gap
    x = run.evals[-1]["rollouts/generated"]
    for place, (_, task) in zip(places, ends, strict=True):
        name = plain(task) if len(plain(task)) <= 14 else plain(task)[:13] + "…"
        axes.annotate(
            name, (x, place), (4, 0), textcoords="offset points", fontsize=8, va="center", annotation_clip=False
        )


def reliability_plot(lines: Sequence[Line]) -> Plot:
    """Observed accuracy against the estimate, of the prompts sampled in the later half of each run."""
    name, title, symptom = "reliability", "Estimated against observed accuracy", "not-calibrated"
    figure, axes = new_axes("estimated accuracy", "observed accuracy")
    axes.plot([0, 1], [0, 1], color=FOREGROUND, linewidth=0.8, linestyle=":")
    keys, counts = [], []
    for i, line in enumerate(lines):
        per_run = [judged(run.groups) for run in line.runs]
        late = [p.since(p.step.max() / 2) for p in per_run if len(p)]
        if not late:
            continue
        bins = reliability(late[0].joined(late[1:]))
        error = np.abs([bins.low, bins.high] - bins.observed)
        axes.errorbar(
            bins.estimate, bins.observed, error, color=SERIES[i], fmt="osD^vPX*"[i], markersize=4, linewidth=1.1
        )
        keys.append(Key(line.label, i))
        counts.append(f"{int(bins.count.min()):,}" if len(bins.count) else "0")
    if not keys:
        return Plot(name, title, "Not drawn: the recipe estimates no accuracies.", symptom)
    axes.set_ylim(0.0, 1.0)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.0), max(high, 1.0))
    caption = (
        f"On the dotted diagonal estimates are right. Prompts of the later half, in bins of equal numbers "
        f"({' / '.join(counts)} or more in each), with 95% intervals; points on a level line are prompts that the "
        "estimate cannot tell apart."
    )
    return Plot(name, title, caption, symptom, figure, keys if len(lines) > 1 else [])


def pool_plots(lines: Sequence[Line]) -> list[Plot]:
    """How the whole training set's estimates move, and where selection sits: a heat map for each configuration."""
    plots = []
    for i, line in enumerate(lines):
        run = line.runs[0]
        title = "Difficulty of the whole training set" + (
            f": {run.name}" if len(lines) > 1 or len(line.runs) > 1 else ""
        )
        plots.append(_pool_plot(run, f"pool-{i}", title))
    return plots


def _pool_plot(run: RunLogs, name: str, title: str) -> Plot:
    grid = pool(run.groups)
    if grid is None:
        why = "Not drawn: the recipe estimates no accuracies, or the run was made by a version that did not log this."
        return Plot(name, title, why, "stale-estimates")
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

    figure, axes = new_axes("step", "estimated accuracy")
    axes.grid(False)
    colour = to_rgb("#2f86c9")  # one hue, in the middle: its opacity is what is read, on white and on black
    shades = LinearSegmentedColormap.from_list("share", [(*colour, 0.0), (*colour, 1.0)])
    width = 1.0 / POOL_BINS
    edges = np.linspace(-width, 1.0 + width, POOL_BINS + 3)
    # The root keeps small shares visible; at the start all prompts are in one bin, which would hide the rest.
    mesh = axes.imshow(
        _on_even_grid(grid.share, grid.edges),
        extent=(grid.edges[0], grid.edges[-1], edges[0], edges[-1]),
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap=shades,
        norm=PowerNorm(0.5, vmin=0.0, vmax=MOST_SHARE, clip=True),
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=25, ticks=[0.0, 0.05, 0.15, 0.3, MOST_SHARE])
    bar.set_label("share of prompts a bin")
    bar.outline.set_visible(False)
    steps, (low, mean, high) = selected_quartiles(run.groups)
    kept = thinned(mean)
    axes.fill_between(steps[kept], low[kept], high[kept], color=SERIES[1], alpha=0.25, linewidth=0)
    axes.plot(steps[kept], mean[kept], color=SERIES[1], linewidth=1.3)
    keys = [Key("selected prompts: mean, quartiles", 1, "solid")]
    target = run.config.get("selection", {}).get("target_accuracy")
    if target is not None and run.config["selection"]["method"] in ("nearest", "thompson"):
        axes.axhline(target, color=SERIES[6], linewidth=1, linestyle=DASHES[2])
        keys.append(Key(f"target τ = {target:g}", 6))
    axes.set_ylim(edges[0], edges[-1])
    caption = (
        "The stronger the colour, the more prompts have that estimate; the outermost rows are those below 0 and "
        "above 1. Look for mass that moves up as the policy learns, and enough of it where selection sits."
    )
    return Plot(name, title, caption, "stale-estimates", figure, keys)


def _on_even_grid(share: Floats, edges: Floats) -> Floats:
    """Columns of equal width, as an image has: each takes the stretch that its middle lies in."""
    middles = np.linspace(edges[0], edges[-1], 2 * share.shape[1] + 1)[1::2]
    return share[:, (np.searchsorted(edges, middles) - 1).clip(0, share.shape[1] - 1)]


def replay_plots(lines: Sequence[Line]) -> list[Plot]:
    """Ages and priorities in the replay buffer: median, quartiles, and lowest and highest."""
    return [
        _spread_plot(
            lines,
            "age",
            "Age of what is replayed",
            "steps",
            "How old the buffer's completions are: the older, the further from what the policy now does.",
        ),
        _spread_plot(
            lines,
            "priority",
            "Priority of what is replayed",
            "|estimate − observed| accuracy",
            "How misjudged the prompts of the buffer were. It falls as the estimates become right.",
        ),
    ]


def _spread_plot(lines: Sequence[Line], what: str, title: str, unit: str, caption: str) -> Plot:
    name = f"replay-{what}"
    figure, axes = new_axes("step", unit)
    keys = []
    for i, line in enumerate(lines):
        run = line.runs[0]
        spread = {quantile: run.series(f"replay/{what}_{quantile}") for quantile in QUANTILES}
        if not len(run.steps) or np.isnan(spread["median"]).all():
            continue
        kept = thinned(spread["median"])
        x, shown = run.steps[kept], {quantile: values[kept] for quantile, values in spread.items()}
        if len(lines) == 1:
            axes.fill_between(x, shown["min"], shown["max"], color=SERIES[i], alpha=0.12, linewidth=0)
        axes.fill_between(x, shown["q25"], shown["q75"], color=SERIES[i], alpha=0.25, linewidth=0)
        axes.plot(x, shown["median"], color=SERIES[i], linestyle=DASHES[i])
        keys.append(Key(run.name, i))
    if not keys:
        why = "Not drawn: the recipe does not replay, or the run was made by a version that did not log this."
        return Plot(name, title, why, "replay-dominates")
    axes.set_ylim(bottom=0.0)
    bands = "Line: median; bands: quartiles" + (", lowest and highest." if len(lines) == 1 else ".")
    keys = keys if len(lines) > 1 else []
    return Plot(name, title, f"{caption} {bands}{_first_seed(lines)}", "replay-dominates", figure, keys)


def _first_seed(lines: Sequence[Line]) -> str:
    return " Of several seeds, the first." if any(len(line.runs) > 1 for line in lines) else ""


def time_plot(lines: Sequence[Line]) -> Plot:
    """Seconds of a step by phase: over the steps of one run, means of several."""
    name, title, symptom = "time", "Where the time goes", None
    lines = [line for line in lines if len(line.runs[0].metrics)]
    if not lines:
        return Plot(name, title, "Not drawn: there is no step yet.", symptom)
    spent = [phases(line.runs[0]) for line in lines]
    names = [phase for phase in spent[0] if any(s[phase].mean() > 0.005 * _total(s) for s in spent)]
    keys = [Key(phase, i, "area") for i, phase in enumerate(names)]
    hidden = "Phases under 0.5% are left out."
    if len(lines) > 1:
        figure, axes = new_axes("seconds a step, mean", "")
        left = np.zeros(len(lines))
        for i, phase in enumerate(names):
            seconds = np.array([s[phase].mean() for s in spent])
            axes.barh(range(len(lines)), seconds, left=left, color=SERIES[i], height=0.6)
            left += seconds
        axes.set_yticks(range(len(lines)), [_short(line.label) for line in lines])
        axes.invert_yaxis()
    else:
        figure, axes = new_axes("step", "seconds")
        steps = lines[0].runs[0].steps
        parts = np.array_split(np.arange(len(steps)), min(len(steps), 100))
        x = [steps[part].mean() for part in parts]
        layers = [[spent[0][phase][part].mean() for part in parts] for phase in names]
        axes.stackplot(x, layers, colors=SERIES[: len(names)], linewidth=0)
        total = np.sum(layers, axis=0)
        axes.set_ylim(0.0, min(1.05 * total.max(), SLOW_STEP * float(np.median(total))))
        if total.max() > axes.get_ylim()[1]:
            hidden += f" The slowest, {total.max():.1f} s, leaves the figure."
        if len(parts) < len(steps):
            hidden += f" Means over {-(-len(steps) // len(parts))} steps."
    caption = f"Wall-clock time of each phase of a step, evaluations and checkpoints not counted. {hidden}"
    return Plot(name, title, caption + _first_seed(lines), symptom, figure, keys)


def _total(spent: dict[str, Floats]) -> float:
    return float(np.sum([seconds.mean() for seconds in spent.values()]))


def _short(label: str) -> str:
    label = plain(label)
    return label if len(label) <= 16 else "…" + label[-15:]
