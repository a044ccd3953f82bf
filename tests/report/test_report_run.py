"""Reading the logs of a run, whole, half-written, old or broken; and the numbers that are made of them."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered import grown
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.errors import InputError
from pacedrl.report.held_out import evaluated_ks, mean_accuracy
from pacedrl.report.run import RunLogs, load_run, load_runs, variants_of
from pacedrl.report.series import (
    chance_error,
    estimate_histogram,
    judged_prompts,
    phases,
    reliability,
    replayed_share,
    selected_quartiles,
    smoothed,
    thinned,
    window_of,
)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints")))


def test_all_rows_are_read(run: RunLogs, folder: Path) -> None:
    assert run.name == folder.name
    assert run.steps.tolist() == list(range(1, 13))
    assert [row["step"] for row in run.evals] == [0, 4, 8, 12]
    assert run.tasks == ["reverse", "sort"]
    assert evaluated_ks(run) == [1, 4]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert run.metrics == rows
    assert run.series("reward/mean").tolist() == [row["reward/mean"] for row in rows]
    assert np.isnan(run.series("kl/reference")).all()  # null
    assert np.isnan(run.series("no such thing")).all()


@pytest.mark.parametrize("half", ['{"step": 13, "rew', "\n", '{"ste'])
def test_a_line_that_is_being_written_is_left_out(copy: Path, run: RunLogs, half: str) -> None:
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(half)
    assert load_run(copy).metrics == run.metrics


@pytest.mark.parametrize("broken", ["{half", "[1, 2]", '{"no": "step"}', '{"step": null}', "\x00"])
def test_a_line_that_cannot_be_read_is_named(copy: Path, broken: str) -> None:
    path = copy / "groups.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], broken, *lines[4:]]) + "\n")
    with pytest.raises(InputError, match=r"groups\.jsonl, line 5: expected a JSON object with a step"):
        load_run(copy)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_run(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"not the folder of a run: it has no config\.yaml"):
        load_run(tmp_path / "empty")
    for text, message in (("a: [", "not YAML"), ("hello", "not the configuration"), ("run: {}", "not the config")):
        (tmp_path / "empty" / "config.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            load_run(tmp_path / "empty")


def test_a_run_without_a_step_is_read(copy: Path) -> None:
    for name in ("metrics", "groups", "samples", "eval"):
        (copy / f"{name}.jsonl").unlink()
    empty = load_run(copy)
    assert (empty.metrics, empty.evals, empty.tasks) == ([], [], [])
    assert evaluated_ks(empty) == []


def test_names_of_several_runs_differ(folder: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copytree(folder, tmp_path / name / "seed0")) for name in ("a", "b")]
    assert [run.name for run in load_runs(paths)] == ["a/seed0", "b/seed0"]
    with pytest.raises(InputError, match="named twice"):
        load_runs([folder, folder])


def test_seeds_of_one_configuration_are_one_line(seeds: list[Path], grpo: Path) -> None:
    lines = variants_of(load_runs([*seeds, grpo]))
    assert [[run.name for run in line.runs] for line in lines] == [["healthy", "healthy-1"], ["grpo"]]
    assert [line.label for line in lines] == ["healthy (2 seeds)", "grpo"]


def test_too_many_configurations_are_refused(run: RunLogs) -> None:
    runs = [replace(run, name=str(i), config=run.config | {"sampling": {"group_size": i}}) for i in range(9)]
    assert len(variants_of(runs[:8])) == 8
    with pytest.raises(InputError, match="9 configurations are too many"):
        variants_of(runs)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), min_size=1, max_size=3000), st.integers(8, 400))
def test_thinning_keeps_extremes_and_ends(values: list[float], points: int) -> None:
    y = np.array(values)
    kept = thinned(y, points)
    known = y[~np.isnan(y)]
    assert len(kept) <= points
    assert (np.diff(kept) > 0).all()
    assert not np.isnan(y[kept]).any()
    if len(known):
        assert (y[kept].min(), y[kept].max()) == (known.min(), known.max())
        assert (y[kept][0], y[kept][-1]) == (known[0], known[-1])


def test_smoothing_is_the_mean_of_what_is_known() -> None:
    y = np.array([1.0, np.nan, 3.0, 5.0, 100.0])
    assert smoothed(y, 3).tolist() == [1.0, 2.0, 4.0, 36.0, 52.5]
    np.testing.assert_array_equal(smoothed(y, 1), y)
    assert [window_of(steps) for steps in (1, 39, 40, 100, 1000)] == [1, 1, 3, 5, 51]


def test_the_error_that_chance_gives() -> None:
    rng = np.random.default_rng(0)
    for p, n in ((0.5, 8), (0.1, 8), (0.7, 3), (0.0, 4)):
        rewards = [[1.0] * right + [0.0] * (n - right) for right in rng.binomial(n, p, size=20_000).tolist()]
        prompts = judged_prompts([{"step": 1, "accuracy_estimate": [p] * len(rewards), "rewards": rewards}])
        simulated = np.abs(prompts.observed - p).mean()
        assert chance_error(prompts).mean() == pytest.approx(simulated, abs=0.003)
    outside = judged_prompts([{"step": 1, "accuracy_estimate": [1.3], "rewards": [[1.0, 0.0]]}])
    assert chance_error(outside).tolist() == [0.0]  # clipped to 1, of which there is no chance


def test_prompts_without_verdict_or_estimate_do_not_count() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 3, "accuracy_estimate": [0.2, 0.4, None], "rewards": [[1.0, None, 0.5], [None, None, None], [1.0] * 3]}
    ]
    prompts = judged_prompts(rows)
    assert [field.tolist() for field in (prompts.step, prompts.estimate, prompts.observed, prompts.trials)] == [
        [3.0],
        [0.2],
        [0.75],
        [2.0],
    ]
    assert prompts.variance.tolist() == [0.125]
    assert len(judged_prompts([])) == 0


def test_bins_of_the_reliability_plot_hold_all_prompts_once(run: RunLogs) -> None:
    prompts = judged_prompts(run.groups)
    bins = reliability(prompts)
    assert bins.count.sum() == len(prompts) == 96
    assert (bins.count >= 10).all()
    assert (np.diff(bins.estimate) > 0).all()
    assert bins.count @ bins.observed == pytest.approx(prompts.observed.sum())
    assert ((bins.low < bins.observed) | (bins.observed == 0)).all()
    assert ((bins.high > bins.observed) | (bins.observed == 1)).all()
    same = judged_prompts([{"step": 1, "accuracy_estimate": [0.5] * 50, "rewards": [[1.0]] * 50}])
    assert reliability(same).count.tolist() == [50.0]
    tied = [0.1] * 13 + [0.2] * 9 + [0.3] * 3 + [0.4 + 0.01 * i for i in range(26)]
    several = judged_prompts([{"step": 1, "accuracy_estimate": tied, "rewards": [[1.0]] * 51}])
    assert reliability(several).count.tolist() == [13.0, 12.0, 10.0, 16.0]  # of ten or more; equal ones together


def test_the_mean_of_tasks_has_a_narrower_interval_than_each(run: RunLogs) -> None:
    curve = mean_accuracy(run, 1)
    each = [[row[f"{task}/pass@1"] for row in run.evals] for task in run.tasks]
    assert curve.mean.tolist() == pytest.approx(np.mean(each, axis=0).tolist())
    widths = [[row[f"{task}/pass@1_high"] - row[f"{task}/pass@1_low"] for row in run.evals] for task in run.tasks]
    expected = np.sqrt(np.square(widths).sum(axis=0)) / 2
    assert (curve.high - curve.low <= expected + 1e-9).all()  # clipped at 0 and 1


def test_the_pool_is_a_share_of_all_prompts_at_every_step(run: RunLogs) -> None:
    histogram = estimate_histogram(run.groups)
    assert histogram is not None
    share, edges = histogram
    assert share.shape == (22, 12)
    assert share.sum(axis=0).tolist() == pytest.approx([1.0] * 12)
    assert share[1 + 10, 0] == 1.0  # all at the prior's ½ before the first step
    assert edges.tolist() == [step + 0.5 for step in range(13)]
    thin = estimate_histogram(grown(run, 1000).groups)
    assert thin is not None
    assert thin[0].shape == (22, 100)
    assert (thin[1][0], thin[1][-1]) == (0.5, 1000.5)
    assert estimate_histogram([{"step": 1, "keys": []}]) is None


def test_other_series(run: RunLogs) -> None:
    steps, (low, mean, high) = selected_quartiles(run.groups)
    assert steps.tolist() == run.steps.tolist()
    assert mean.tolist() == pytest.approx([np.mean(row["accuracy_estimate"]) for row in run.groups])
    assert (low <= high).all()
    trained, replayed = np.diff([0, *run.series("rollouts/trained")]), run.series("replay/trained")
    assert replayed_share(run).tolist() == pytest.approx((replayed / trained).tolist())
    spent = phases(run)
    assert sum(spent.values()) == pytest.approx(run.series("time/step"))
