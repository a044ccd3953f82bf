"""Calibration against closed forms."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from pacedrl.cli import main
from pacedrl.lab.calibrate import (
    Calibration,
    CheckpointScores,
    _coverages,
    _last_means,
    _noise,
    _reliability,
    _scores,
    coverage,
)
from pacedrl.lab.calibration_page import calibration_table, write_calibration
from pacedrl.method.beliefs import points
from pacedrl.method.estimator import Beliefs


def test_scores_of_two_prompts() -> None:
    scores = _scores(np.array([0.75, 0.0]), np.array([0.5, 0.25]), [[1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert scores.mae == pytest.approx(0.25)
    assert scores.bias == pytest.approx(0.0)
    assert scores.brier == pytest.approx((0.0625 + 0.5625 + 0.0 + 0.0 + 0.0 + 1.0) / 6)
    assert scores.spearman == pytest.approx(1.0)


def test_no_estimate_has_a_lower_brier_score_than_each_prompts_own_mean() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    own = np.array([0.25, 0.75])
    best = _scores(own, own, rewards)
    assert best.brier == pytest.approx(np.mean(own * (1 - own)))
    assert all(_scores(own + shift, own, rewards).brier > best.brier for shift in (-0.1, 0.05, 0.3))
    assert _scores(np.array([0.5, 0.5]), own, rewards).spearman is None


def test_bins_are_tenths_and_the_outer_ones_take_estimates_outside_of_them() -> None:
    parts = [(np.array([-0.5, 0.05, 0.1]), np.array([0.0, 0.2, 0.3])), (np.array([1.9, 1.0]), np.array([1.0, 0.8]))]
    bins = _reliability(parts)
    assert [(bin_.prompts, bin_.observed) for bin_ in bins] == [(2, 0.1), (1, 0.3), (2, 0.9)]
    assert [bin_.predicted for bin_ in bins] == pytest.approx([-0.225, 0.1, 1.45])


@pytest.mark.parametrize(("accuracy", "tolerance"), [(0.5, 0.03), (0.1, 0.1), (0.02, 0.35)])
def test_noise_is_about_the_mean_error_of_a_mean_of_samples(accuracy: float, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    means = rng.binomial(32, accuracy, size=20_000) / 32
    assert _noise(means, 32) == pytest.approx(np.abs(means - accuracy).mean(), rel=tolerance)


def test_last_means_are_those_of_the_log_up_to_the_step() -> None:
    rows = [
        {"step": 1, "keys": ["a", "b"], "rewards": [[1.0, 0.0], [None, None]]},
        {"step": 2, "keys": ["a", "c"], "rewards": [[1.0, None], [0.0, 0.0]]},
    ]
    means = [_last_means(rows, ["a", "b", "c"], step).tolist() for step in (0, 1, 2)]
    assert means == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [1.0, 0.5, 0.0]]


def test_coverage_of_a_flat_belief_counts_a_number_on_the_boundary_in_part() -> None:
    flat = Beliefs(np.array([0.5]), np.array([2.0]))  # predicts 0 to n right completions with equal probability
    trials = np.array([3])
    assert [coverage(flat, np.array([k]), trials, 0.5) for k in range(4)] == pytest.approx([0, 1, 1, 0])
    assert [coverage(flat, np.array([k]), trials, 0.9) for k in range(4)] == pytest.approx([0.8, 1, 1, 0.8])
    assert [coverage(flat, np.array([k]), np.array([1]), 0.5) for k in range(2)] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("trials", [2, 16])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_right_beliefs_cover_their_share_and_others_do_not(trials: int, share: float) -> None:
    rng = np.random.default_rng(0)
    mean, strength = rng.uniform(0.02, 0.98, 4_000), rng.uniform(0.5, 50.0, 4_000)
    right = rng.binomial(trials, rng.beta(mean * strength, (1 - mean) * strength))
    number = np.full(4_000, trials)
    assert coverage(Beliefs(mean, strength), right, number, share) == pytest.approx(share, abs=0.02)
    if trials > 2:  # a result of two completions is hardly less noisy for being certain of the accuracy
        assert coverage(Beliefs(mean, 20 * strength), right, number, share) < share - 0.04
        assert coverage(Beliefs(mean, strength / 5), right, number, share) > share + 0.01
        assert coverage(Beliefs(np.sqrt(mean), strength), right, number, share) < share - 0.04


def test_prompts_may_have_different_numbers_of_judged_completions() -> None:
    beliefs = Beliefs(np.array([0.5, 0.5]), np.array([2.0, 2.0]))
    found = _coverages(beliefs, [[1.0], [1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])  # 2 of 7: from 0.25 to 0.375
    assert found == pytest.approx({"50%": (0.5 + 1.0) / 2, "90%": (0.9 + 1.0) / 2})


def test_impossible_results_are_not_covered_and_points_have_no_intervals() -> None:
    certain = Beliefs(np.array([0.01, 0.5]), np.array([1e9, 1e9]))
    assert coverage(certain, np.array([400, 200]), np.array([400, 400]), 0.9) == pytest.approx(0.5)
    assert _coverages(points(np.array([0.3])), [[1.0, 0.0]]) == {}


def of_few_prompts() -> Calibration:
    """Return a calibration of two prompts whose estimates lie in one bin, so that no line can be drawn."""
    estimate_P, observed_P = np.array([0.51, 0.52]), np.array([0.5, 0.75])
    scores = _scores(estimate_P, observed_P, [[1.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    checkpoint = CheckpointScores(step=1, noise={"seen": 0.1}, scores={"seen": {"log Z": scores}}, beta_kl=None)
    bins = {"seen": {"log Z": _reliability([(estimate_P, observed_P)])}}
    return Calibration(run="run", recipe="paced", samples=4, checkpoints=[checkpoint], reliability=bins)


def test_a_page_of_few_prompts_is_written_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_calibration(tmp_path, of_few_prompts())
    assert page.read_text().count("data:image/svg+xml") == 2


def test_the_guide_explains_every_column_of_the_table() -> None:
    head = calibration_table(of_few_prompts()).strip().splitlines()[0].strip("| ").split(" | ")
    guide = (Path(__file__).parents[2] / "docs/guide.md").read_text(encoding="utf-8")
    section = guide.partition("\n### Calibration\n")[2].partition("\n### ")[0]
    explained = [name for row in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE) for name in row.split(", ")]
    explained.remove("column")
    assert set(head) - {"estimator"} == set(explained)


@pytest.mark.parametrize("verb", ["calibrate x", "compare examples/demo.yaml --recipes grpo --rollouts 1"])
def test_without_its_libraries_a_verb_names_its_extra(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "markdown", None)
    assert main(verb.split()) == 2
    assert 'the page needs markdown: pip install "pacedrl[lab]"' in capsys.readouterr().err
