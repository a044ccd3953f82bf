"""Calibration metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pacedrl.method import calibration_metrics
from pacedrl.method.estimator import spearman


def test_mae_and_bias() -> None:
    metrics = calibration_metrics(np.array([0.2, 0.8, 0.5]), np.array([0.0, 1.0, 0.25]))
    assert metrics["accuracy/mae"] == pytest.approx((0.2 + 0.2 + 0.25) / 3)
    assert metrics["accuracy/bias"] == pytest.approx((0.2 - 0.2 + 0.25) / 3)
    assert metrics["accuracy/estimate_mean"] == pytest.approx(0.5)
    assert metrics["accuracy/observed_mean"] == pytest.approx(1.25 / 3)
    assert metrics["accuracy/spearman"] == pytest.approx(1.0)


def test_spearman_with_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman(np.array([1.0, 2.0, 2.0, 9.0]), np.array([0.0, 7.0, 5.0, 8.0])) == pytest.approx(
        4.5 / math.sqrt(4.5 * 5)
    )


def test_spearman_is_about_order_only() -> None:
    x = np.array([0.1, 0.2, 0.7, 0.9])
    assert spearman(x, np.exp(9 * x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert math.isnan(spearman(x, np.full(4, 0.5)))
