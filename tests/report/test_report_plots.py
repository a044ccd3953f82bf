"""Plots show what was logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from altered import grown

from pacedrl.report.panels import PANELS, Plot, draw_panel, values
from pacedrl.report.plots import all_plots, held_out, pool_plots, reliability_plot, replay_plots, time_plot
from pacedrl.report.run import RunLogs, Variant, load_run, load_runs, variants_of


def one(run: RunLogs) -> list[Variant]:
    return variants_of([run])


def ys(plot: Plot, line: int) -> list[float]:
    return plot.figure.axes[0].lines[line].get_ydata().tolist()


def test_held_out_curves(run: RunLogs) -> None:
    first, fourth = held_out(one(run))
    assert [plot.title for plot in (first, fourth)] == ["Held-out pass@1", "Held-out pass@4"]
    lines = first.figure.axes[0].lines
    rollouts = [row["rollouts/generated"] for row in run.evals]
    assert all(line.get_xdata().tolist() == rollouts for line in lines)
    tasks = [[row[f"{task}/pass@1"] for row in run.evals] for task in ("reverse", "sort")]
    assert [ys(first, 0), ys(first, 1)] == tasks
    assert ys(first, 2) == pytest.approx(np.mean(tasks, axis=0).tolist())
    assert {text.get_text() for text in first.figure.axes[0].texts} == {"reverse", "sort"}


def test_a_panel_of_one_run_holds_all_its_quantities_as_logged(run: RunLogs) -> None:
    for panel in PANELS:
        (plot,) = draw_panel(panel, one(run))
        of = {label: values(run, quantity) for label, quantity in panel.quantities.items()}
        known = {label: y for label, y in of.items() if not np.isnan(y).all()}
        if not known:
            assert (plot.figure, panel.id) == (None, "kl-reference")
            continue
        assert [key.label for key in plot.keys] == list(known)
        for i, y in enumerate(known.values()):
            np.testing.assert_array_equal(ys(plot, i), y[~np.isnan(y)])


def test_long_runs_are_smoothed_with_the_raw_values_faint_behind(run: RunLogs) -> None:
    long = grown(run, 1000)
    (plot,) = draw_panel(PANELS[0], one(long))
    raw, bold, *_ = plot.figure.axes[0].lines
    assert "bold: mean over 51 steps; faint: every step" in plot.caption
    assert raw.get_alpha() < 0.5
    assert bold.get_alpha() is None
    assert len(raw.get_xdata()) <= 400
    reward = run.series("reward/mean")
    assert (raw.get_ydata().min(), raw.get_ydata().max()) == (reward.min(), reward.max())
    assert np.ptp(bold.get_ydata()) < np.ptp(reward)


def test_several_runs_are_overlaid_one_figure_a_quantity(seeds: list[Path], grpo: Path) -> None:
    lines = variants_of(load_runs([*seeds, grpo]))
    reward, mixed = draw_panel(PANELS[0], lines)
    assert [key.label for key in reward.keys] == ["healthy (2 seeds)", "grpo"]
    assert mixed.title == "Reward and mixed groups: share of groups with different rewards"
    a, b = (line.series("reward/mean") for line in lines[0].runs)
    assert [ys(reward, 0), ys(reward, 1)] == [a.tolist(), b.tolist()]
    mean = reward.figure.axes[0].lines[2]
    expected = np.interp(mean.get_xdata(), np.arange(1, 13), (a + b) / 2)
    np.testing.assert_allclose(mean.get_ydata(), expected, atol=1e-12)
    assert len(reward.figure.axes[0].collections) == 1  # the band over seeds
    assert ys(reward, 3) == lines[1].runs[0].series("reward/mean").tolist()
    colours = {line.get_color() for line in reward.figure.axes[0].lines}
    assert len(colours) == 2
    (error,) = [plot for plot in all_plots(lines) if plot.id == "error"]
    assert error.figure is not None  # though one of them estimates nothing


def test_the_reliability_plot_is_of_the_later_half(run: RunLogs) -> None:
    plot = reliability_plot(one(run))
    late = [row for row in run.groups if row["step"] > 6]
    points = plot.figure.axes[0].lines[1]
    count = sum(len(row["keys"]) for row in late)
    bins = len(points.get_xdata())
    assert bins > 1
    if count % bins == 0:
        assert np.mean(points.get_xdata()) == pytest.approx(
            np.mean([row["accuracy_estimate"] for row in late]), abs=1e-6
        )
        assert np.mean(points.get_ydata()) == pytest.approx(np.mean([row["rewards"] for row in late]))


def test_the_heat_map_shows_the_pool_the_selection_and_the_target(run: RunLogs) -> None:
    (plot,) = pool_plots(one(run))
    axes = plot.figure.axes[0]
    image = axes.images[0].get_array()
    counts = [[row["pool"]["below"], *row["pool"]["counts"], row["pool"]["above"]] for row in run.groups]
    np.testing.assert_allclose(image, np.array(counts).T / 128)
    assert axes.images[0].get_extent() == pytest.approx([0.5, 12.5, -0.05, 1.05])
    selected, target = axes.lines
    assert selected.get_ydata().tolist() == pytest.approx([np.mean(row["accuracy_estimate"]) for row in run.groups])
    assert set(target.get_ydata()) == {0.5}


def test_replay_is_drawn_with_its_spread(run: RunLogs) -> None:
    age, priority = replay_plots(one(run))
    assert ys(age, 0) == [row["replay/age_median"] for row in run.metrics]
    assert ys(priority, 0) == [row["replay/priority_median"] for row in run.metrics]
    outer = age.figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert outer.max() == max(row["replay/age_max"] for row in run.metrics)
    assert outer.min() == min(row["replay/age_min"] for row in run.metrics)


def test_phases_are_stacked_to_the_time_of_a_step(run: RunLogs, grpo: Path) -> None:
    plot = time_plot(one(run))
    top = plot.figure.axes[0].collections[-1].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(run.series("time/step").max(), rel=0.03)  # phases under 0.5% are left out
    several = time_plot(variants_of([run, load_run(grpo)]))
    assert len(several.figure.axes[0].patches) == 2 * len(several.keys)


def test_what_an_older_run_did_not_log_is_said_to_be_missing(run: RunLogs) -> None:
    new = ("replay/age_", "replay/priority_", "estimator/stale")
    old = replace(
        run,
        metrics=[{name: v for name, v in row.items() if not name.startswith(new)} for row in run.metrics],
        groups=[{name: v for name, v in row.items() if name != "pool"} for row in run.groups],
    )
    missing = {plot.id for plot in all_plots(one(old)) if plot.figure is None}
    assert missing == {"pool-0", "replay-age", "replay-priority", "kl-reference"}
    assert all(plot.caption.startswith("Not drawn: ") for plot in all_plots(one(old)) if plot.figure is None)


def test_a_run_without_a_step_draws_nothing(run: RunLogs) -> None:
    empty = replace(run, metrics=[], evals=[], groups=[], samples=[])
    assert all(plot.figure is None for plot in all_plots(one(empty)))


def test_every_axis_has_a_label(run: RunLogs, grpo: Path) -> None:
    def labelled(plots: list[Plot], allowed: Callable[[Plot], bool] = lambda plot: False) -> None:
        for plot in plots:
            if plot.figure is not None:
                axes = plot.figure.axes[0]
                assert axes.get_xlabel(), plot.id
                assert axes.get_ylabel() or allowed(plot), plot.id

    labelled(all_plots(one(run)))
    labelled(all_plots(variants_of([run, load_run(grpo)])), lambda plot: plot.id == "time")  # its rows are runs
