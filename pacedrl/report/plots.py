"""All plots of a report, in the order in which the page shows them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pacedrl.method.estimator import POOL_BINS
from pacedrl.method.selection import QUANTILES
from pacedrl.report.held_out import evaluated_ks, mean_accuracy, task_accuracy
from pacedrl.report.panels import PANELS, SEEDS_NOTE, Key, Plot, draw_mean, draw_panel
from pacedrl.report.run import Floats, RunLogs, Variant
from pacedrl.report.series import (
    estimate_histogram,
    judged_prompts,
    phases,
    reliability,
    selected_quartiles,
    thinned,
)
from pacedrl.report.style import DASHES, FOREGROUND, MUTED, SERIES, new_axes
from pacedrl.text import plain

FIRST, SECOND, *REST = PANELS
"""Reward, the error of the estimate, and all others."""
MOST_SHARE = 0.5
"""Share of the prompts in one bin of the heat map; larger shares look the same."""
SLOW_STEP = 3.0
"""Multiple of the median step time at which the figure of times ends."""


def all_plots(variants: Sequence[Variant]) -> list[Plot]:
    """Draw one variant, or several in shared figures. Runs without steps draw nothing."""
    return [
        *held_out(variants),
        *draw_panel(FIRST, variants),
        reliability_plot(variants),
        *draw_panel(SECOND, variants),
        *pool_plots(variants),
        *replay_plots(variants),
        *(plot for panel in REST for plot in draw_panel(panel, variants)),
        time_plot(variants),
    ]


def held_out(variants: Sequence[Variant]) -> list[Plot]:
    """Draw pass@k of the held-out tasks against completions generated, one figure for each k."""
    ks = sorted({k for variant in variants for run in variant.runs for k in evaluated_ks(run)})
    if not ks:
        return [Plot("pass-1", "Held-out pass@1", "Not drawn: nothing was evaluated (data.eval).", "not-learning")]
    return [_held_out(variants, k) for k in ks]


def _held_out(variants: Sequence[Variant], k: int) -> Plot:
    figure, axes = new_axes("completions generated", f"held-out pass@{k}")
    having = [(variant.label, [run for run in variant.runs if k in evaluated_ks(run)]) for variant in variants]
    shown = [(label, runs) for label, runs in having if runs]
    keys = []
    for i, (label, runs) in enumerate(shown):
        colour, dash = SERIES[i], DASHES[i]
        means = [mean_accuracy(run, k) for run in runs]
        if len(runs) > 1:
            for mean in means:
                axes.plot(mean.rollouts, mean.mean, color=colour, linewidth=0.6, alpha=0.5)
            draw_mean(axes, [(mean.rollouts, mean.mean) for mean in means], colour, dash)
        else:
            if len(shown) == 1:
                for task in runs[0].tasks:
                    accuracy = task_accuracy(runs[0], task, k)
                    axes.plot(accuracy.rollouts, accuracy.mean, color=MUTED, linewidth=0.7, alpha=0.7)
            (mean,) = means
            axes.fill_between(mean.rollouts, mean.low, mean.high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(mean.rollouts, mean.mean, color=colour, linestyle=dash, marker=".", markersize=5)
        keys.append(Key(label if len(shown) > 1 else "mean of tasks", i))
    axes.set_ylim(0.0, 1.0)
    first = shown[0][1][0]
    if len(shown) == len(shown[0][1]) == 1 and len(first.tasks) > 1:
        _name_ends(axes, first, k)
        keys.append(Key("each task", 0, "background"))
    what = "The chance that one completion is right" if k == 1 else f"The chance that one of {k} is right"
    note = "Bands are 95% intervals over prompts."
    if any(len(runs) > 1 for _, runs in shown):
        note = f"{SEEDS_NOTE[0].upper()}{SEEDS_NOTE[1:]}."
    look = "it should rise" if k == 1 else "if it falls while pass@1 rises, diversity is lost"
    symptom = "not-learning" if k == 1 else "entropy-collapse"
    caption = f"{what}, on prompts that are not trained on: {look}. {note}"
    return Plot(f"pass-{k}", f"Held-out pass@{k}", caption, symptom, figure, keys)


def _name_ends(axes: Any, run: RunLogs, k: int) -> None:
    """Write the tasks' names at the ends of their lines, moved apart where they would overlap."""
    ends = sorted((task_accuracy(run, task, k).mean[-1], task) for task in run.tasks)
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


def reliability_plot(variants: Sequence[Variant]) -> Plot:
    """Draw observed accuracy against the estimate, for the prompts sampled in the later half of each run."""
    name, title, symptom = "reliability", "Estimated against observed accuracy", "not-calibrated"
    figure, axes = new_axes("estimated accuracy", "observed accuracy")
    axes.plot([0, 1], [0, 1], color=FOREGROUND, linewidth=0.8, linestyle=":")
    keys, counts = [], []
    for i, variant in enumerate(variants):
        late = [row for run in variant.runs for row in run.groups if row["step"] > run.groups[-1]["step"] / 2]
        prompts = judged_prompts(late)
        if not len(prompts):
            continue
        bins = reliability(prompts)
        error = np.abs([bins.low, bins.high] - bins.observed)
        axes.errorbar(
            bins.estimate, bins.observed, error, color=SERIES[i], fmt="osD^vPX*"[i], markersize=4, linewidth=1.1
        )
        keys.append(Key(variant.label, i))
        counts.append(f"{int(bins.count.min()):,}")
    if not keys:
        return Plot(name, title, "Not drawn: the recipe estimates no accuracies.", symptom)
    axes.set_ylim(0.0, 1.0)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.0), max(high, 1.0))
    caption = (
        "Estimates on the dotted diagonal are right. Prompts of the later half of the run, in bins of equal size "
        f"({' / '.join(counts)} or more prompts in each), with 95% intervals. The estimate cannot tell apart prompts "
        "whose points lie on a horizontal line."
    )
    return Plot(name, title, caption, symptom, figure, keys if len(variants) > 1 else [])


def pool_plots(variants: Sequence[Variant]) -> list[Plot]:
    """Draw a heat map for each variant: how the estimates of the whole training set move, and what was selected."""
    title = "Difficulty of the whole training set"
    named = len(variants) > 1 or len(variants[0].runs) > 1
    firsts = [variant.runs[0] for variant in variants]
    return [_pool_plot(run, f"pool-{i}", f"{title}: {run.name}" if named else title) for i, run in enumerate(firsts)]


def _pool_plot(run: RunLogs, name: str, title: str) -> Plot:
    histogram = estimate_histogram(run.groups)
    if histogram is None:
        why = "Not drawn: the recipe estimates no accuracies, or the run was made by a version that did not log this."
        return Plot(name, title, why, "stale-estimates")
    share, steps = histogram
    figure, axes = new_axes("step", "estimated accuracy")
    axes.grid(False)
    width = 1.0 / POOL_BINS
    edges = np.linspace(-width, 1.0 + width, POOL_BINS + 3)
    _draw_heat_map(figure, axes, _on_even_grid(share, steps), steps, edges)
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
        "The stronger the colour, the more prompts have that estimate; the outermost rows are estimates below 0 and "
        "above 1. The mass should move up as the policy learns, and enough of it should stay near the selected prompts."
    )
    return Plot(name, title, caption, "stale-estimates", figure, keys)


def _draw_heat_map(figure: Any, axes: Any, share: Floats, x_edges: Floats, y_edges: Floats) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb

    colour = to_rgb("#2f86c9")  # a single hue whose opacity shows the share, on white and on black
    shades = LinearSegmentedColormap.from_list("share", [(*colour, 0.0), (*colour, 1.0)])
    # The root keeps small shares visible; at the start all prompts are in one bin, which would hide the rest.
    mesh = axes.imshow(
        share,
        extent=(x_edges[0], x_edges[-1], y_edges[0], y_edges[-1]),
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap=shades,
        norm=PowerNorm(0.5, vmin=0.0, vmax=MOST_SHARE, clip=True),
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=25, ticks=[0.0, 0.05, 0.15, 0.3, MOST_SHARE])
    bar.set_label("share of prompts per bin")
    bar.outline.set_visible(False)


def _on_even_grid(share: Floats, edges: Floats) -> Floats:
    """Return columns of equal width, as an image needs: each is the column of ``share`` that its middle lies in."""
    middles = np.linspace(edges[0], edges[-1], 2 * share.shape[1] + 1)[1::2]
    return share[:, (np.searchsorted(edges, middles) - 1).clip(0, share.shape[1] - 1)]


def replay_plots(variants: Sequence[Variant]) -> list[Plot]:
    """Draw ages and priorities in the replay buffer: median, quartiles, lowest and highest."""
    age = "How old the buffer's completions are: the older, the further from what the policy does now."
    priority = "How wrong the estimates of the buffer's prompts were. It falls as the estimates become right."
    unit = "|estimate − observed| accuracy"
    return [_spread_plot(variants, "age", "steps", age), _spread_plot(variants, "priority", unit, priority)]


def _spread_plot(variants: Sequence[Variant], what: str, unit: str, caption: str) -> Plot:
    name, title = f"replay-{what}", f"{what.capitalize()} of what is replayed"
    figure, axes = new_axes("step", unit)
    keys = []
    for i, variant in enumerate(variants):
        run = variant.runs[0]
        spread = {quantile: run.series(f"replay/{what}_{quantile}") for quantile in QUANTILES}
        if not len(run.steps) or np.isnan(spread["median"]).all():
            continue
        kept = thinned(spread["median"])
        x, shown = run.steps[kept], {quantile: values[kept] for quantile, values in spread.items()}
        if len(variants) == 1:
            axes.fill_between(x, shown["min"], shown["max"], color=SERIES[i], alpha=0.12, linewidth=0)
        axes.fill_between(x, shown["q25"], shown["q75"], color=SERIES[i], alpha=0.25, linewidth=0)
        axes.plot(x, shown["median"], color=SERIES[i], linestyle=DASHES[i])
        keys.append(Key(run.name, i))
    if not keys:
        why = "Not drawn: the recipe does not replay, or the run was made by a version that did not log this."
        return Plot(name, title, why, "replay-dominates")
    axes.set_ylim(bottom=0.0)
    bands = "Line: median; bands: quartiles" + (", lowest and highest." if len(variants) == 1 else ".")
    keys = keys if len(variants) > 1 else []
    return Plot(name, title, f"{caption} {bands}{_first_seed(variants)}", "replay-dominates", figure, keys)


def _first_seed(variants: Sequence[Variant]) -> str:
    several = any(len(variant.runs) > 1 for variant in variants)
    return " With several seeds, the first is shown." if several else ""


def time_plot(variants: Sequence[Variant]) -> Plot:
    """Draw the seconds of each phase of a step: over the steps of a single run, or the means of several runs."""
    name, title = "time", "Where the time goes"
    variants = [variant for variant in variants if len(variant.runs[0].metrics)]
    if not variants:
        return Plot(name, title, "Not drawn: there is no step yet.", None)
    spent = [phases(variant.runs[0]) for variant in variants]
    totals = [sum(seconds.mean() for seconds in each.values()) for each in spent]
    shares = zip(spent, totals, strict=True)
    large = {phase for each, total in shares for phase in each if each[phase].mean() > 0.005 * total}
    names = [phase for phase in spent[0] if phase in large]
    if len(variants) > 1:
        figure, note = _mean_times(spent, names, [_short(variant.label) for variant in variants])
    else:
        figure, note = _times_over_steps(spent[0], names, variants[0].runs[0].steps)
    caption = (
        "Wall-clock time of each phase of a step, without evaluations and checkpoints. Phases under 0.5% are left out."
    )
    keys = [Key(phase, i, "area") for i, phase in enumerate(names)]
    return Plot(name, title, f"{caption}{note}{_first_seed(variants)}", None, figure, keys)


def _mean_times(spent: Sequence[dict[str, Floats]], names: Sequence[str], labels: Sequence[str]) -> tuple[Any, str]:
    figure, axes = new_axes("seconds per step, mean", "")
    left = np.zeros(len(spent))
    for i, phase in enumerate(names):
        seconds = np.array([each[phase].mean() for each in spent])
        axes.barh(range(len(spent)), seconds, left=left, color=SERIES[i], height=0.6)
        left += seconds
    axes.set_yticks(range(len(spent)), labels)
    axes.invert_yaxis()
    return figure, ""


def _times_over_steps(spent: dict[str, Floats], names: Sequence[str], steps: Floats) -> tuple[Any, str]:
    figure, axes = new_axes("step", "seconds")
    parts = np.array_split(np.arange(len(steps)), min(len(steps), 100))
    layers = [[spent[phase][part].mean() for part in parts] for phase in names]
    colours = SERIES[: len(names)]
    axes.stackplot([steps[part].mean() for part in parts], layers, colors=colours, linewidth=0)
    total = np.sum(layers, axis=0)
    axes.set_ylim(0.0, min(1.05 * total.max(), SLOW_STEP * float(np.median(total))))
    note = ""
    if total.max() > axes.get_ylim()[1]:
        note += f" The slowest step, {total.max():.1f} s, exceeds the figure."
    if len(parts) < len(steps):
        note += f" Means over {-(-len(steps) // len(parts))} steps."
    return figure, note


def _short(label: str) -> str:
    label = plain(label)
    return label if len(label) <= 16 else "…" + label[-15:]
