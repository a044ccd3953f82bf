"""Figures of a comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pacedrl.lab.results import Results, VariantResult
from pacedrl.report.style import BLACK, BLUE, FILE, GREEN, LIGHT_GREY, ORANGE, new_grid, save, styled

BASELINE, OWN, OTHERS = BLACK, BLUE, LIGHT_GREY
GRID_POINTS = 25
COLUMNS = 4


@styled(FILE)
def learning_curves(
    results: Results, k: int, spent: Mapping[str, Mapping[int, Sequence[float]]], unit: str, path: Path
) -> None:
    """Draw pass@``k`` in a panel for each variant: its mean in blue, its seeds thin, the baseline black, others grey.

    ``spent`` is what the seeds of each variant had spent at each evaluation, in ``unit``.
    """
    names = [name for name, variant in results.variants.items() if variant.runs]
    means = {name: _mean_curve(results.variants[name], spent[name], k) for name in names}
    shown = [name for name in names if name != results.baseline] or [results.baseline]
    columns = min(COLUMNS, len(shown)) or 1
    lines = -(-len(shown) // columns) or 1
    width, height = 2.6 * columns + 0.6, 2.1 * lines + 0.5
    figure, panels = new_grid(width, height, lines, columns, sharex=True, sharey=True)
    for panel, name in zip(panels.flat, shown, strict=False):
        for other in shown:
            panel.plot(*means[other], color=OTHERS, linewidth=0.6, zorder=1)
        for seed, run in results.variants[name].runs.items():
            panel.plot(spent[name][seed], run.curve.of(k), color=OWN, linewidth=0.5, alpha=0.5, zorder=2)
        panel.plot(*means[name], color=OWN, linewidth=1.8, zorder=4)
        (baseline,) = panel.plot(*means[results.baseline], color=BASELINE, linewidth=1.4, zorder=3)
        if panel is panels.flat[0]:
            panel.legend([baseline], [results.baseline], frameon=False, fontsize=7, loc="lower right", handlelength=1.2)
        if k == 1:
            panel.axhline(results.target, color="grey", linewidth=0.7, linestyle=":")
        panel.set_title(name, fontsize=9, color=OWN, fontweight="bold")
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    for column in range(columns):  # the lowest visible panel of each column
        panels.flat[(len(shown) - 1 - column) // columns * columns + column].tick_params(labelbottom=True)
    figure.supxlabel(unit, fontsize=9)
    figure.supylabel(f"held-out pass@{k}", fontsize=9)
    figure.tight_layout()
    save(figure, path)


@styled(FILE)
def intervals(results: Results, measure: str, label: str, path: Path) -> None:
    """Draw every variant's mean and 95% interval of one measure, with its seeds as dots, the best at the top."""
    rows = [
        (
            name,
            variant.summary[measure],
            [run.measure(measure, results.target, results.rollouts) for run in variant.runs.values()],
        )
        for name, variant in results.variants.items()
        if variant.summary[measure] is not None
    ]
    fewer_is_better = measure.endswith("_to_target") or measure == "estimate_mae"
    rows.sort(key=lambda row: row[1].mean, reverse=fewer_is_better)  # type: ignore[union-attr]
    figure, [[axes]] = new_grid(6.4, 0.27 * len(rows) + 0.9)
    for y, (name, interval, values) in enumerate(rows):
        assert interval is not None
        colour = BASELINE if name == results.baseline else OWN
        axes.plot([value for value in values if value is not None], [y] * len(values), ".", color=OTHERS, markersize=5)
        if interval.low is not None:
            axes.plot([interval.low, interval.high], [y, y], color=colour, linewidth=1.6)
        axes.plot([interval.mean], [y], "o", color=colour, markersize=5)
    base = results.variants[results.baseline].summary[measure]
    if base is not None:
        axes.axvline(base.mean, color=BASELINE, linewidth=0.7, linestyle=":")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_xlabel(label)
    figure.tight_layout()
    save(figure, path)


@styled(FILE)
def pass_at_k(results: Results, path: Path) -> None:
    """Draw final pass@k against k: the baseline black, the three highest at the largest k coloured, the others grey."""
    colours = [BLUE, ORANGE, GREEN]
    curves = {name: variant.pass_at_k for name, variant in results.variants.items() if variant.runs}
    largest = max(next(iter(curves.values())))
    ranked = sorted(curves, key=lambda name: -curves[name][largest].mean)
    best = [name for name in ranked if name != results.baseline][: len(colours)]
    figure, [[axes]] = new_grid(6.4, 3.4)
    for name, by_k in curves.items():
        colour = BASELINE if name == results.baseline else dict(zip(best, colours, strict=False)).get(name, OTHERS)
        label = name if colour != OTHERS else None
        means = [by_k[k].mean for k in sorted(by_k)]
        axes.plot(sorted(by_k), means, ".-", color=colour, label=label, zorder=1 if colour == OTHERS else 3)
        if label:
            ends = [(by_k[k].low, by_k[k].high) for k in sorted(by_k)]
            if all(low is not None for low, _ in ends):
                axes.fill_between(sorted(by_k), *zip(*ends, strict=True), color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(next(iter(curves.values()))), [str(k) for k in sorted(next(iter(curves.values())))])
    axes.set(xlabel="k", ylabel="final held-out pass@k")
    axes.legend(frameon=False)
    figure.tight_layout()
    save(figure, path)


def _mean_curve(variant: VariantResult, spent: Mapping[int, Sequence[float]], k: int) -> tuple[Any, Any]:
    """Return the mean over seeds, linear between evaluations, as far as all seeds went."""
    end = min(spent[seed][-1] for seed in variant.runs)
    grid = np.linspace(0.0, end, GRID_POINTS)
    return grid, np.mean([np.interp(grid, spent[seed], run.curve.of(k)) for seed, run in variant.runs.items()], axis=0)
