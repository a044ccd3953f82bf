"""Means over a few seeds, with 95% intervals that stay valid for few."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel

from pacedrl.errors import InputError

RESAMPLES = 10_000
FEWEST_RESAMPLED = 5
"""Minimum number of seeds for a bootstrap interval."""


class Interval(BaseModel):
    """A mean over seeds and its 95% interval. With one seed both ends are None."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of a difference shows that it is not zero."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def scipy_stats() -> Any:
    """Import scipy.stats. Raises InputError naming the extra if it is missing."""
    try:
        from scipy import stats
    except ImportError:
        raise InputError('intervals need scipy: pip install "pacedrl[lab]"') from None
    return stats


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over seeds with its expanded percentile interval (Hesterberg 2015, The American Statistician 69:4, §3.3).

    The plain percentile interval is too narrow for few seeds: with 5 it covers about 82% instead of 95%. Expanding
    moves its quantiles outwards to Φ(−√(n/(n−1))·t), which for normal data gives Student's interval. A bootstrap
    interval is never wider than the range of the seeds, which is too narrow for two to four of them; those get
    Student's interval itself. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no seeds to average over")
    data, n = np.asarray(values, dtype=np.float64), len(values)
    mean = float(data.mean())
    if n == 1:
        return Interval(mean=mean, low=None, high=None)
    stats = scipy_stats()
    t = round(float(stats.t.ppf(0.975, n - 1)), 3)  # the three decimals of printed tables keep older results the same
    if n < FEWEST_RESAMPLED:
        half = t * float(stats.sem(data))
        return Interval(mean=mean, low=mean - half, high=mean + half)
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * t)
    low, high = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=1.0 - 2.0 * tail,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean=mean, low=float(low), high=float(high))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Mean of the differences to the baseline, seed by seed. Raises ValueError if the numbers of seeds differ."""
    return mean_interval([value - base for value, base in zip(values, baseline, strict=True)])
