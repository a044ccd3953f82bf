"""The content of results.json: the measures of every run, their means over seeds and differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from pacedrl.intervals import Interval, mean_interval, paired_difference
from pacedrl.lab.measures import MEASURES, RunResult, spent_to_reach

TARGET_SHARE = 0.9
"""Default target: this share of the baseline's gain in accuracy, above its accuracy at the start."""


class VariantResult(BaseModel):
    """One variant over its seeds."""

    overrides: list[str]
    runs: dict[int, RunResult]
    """Results by seed; failed runs are left out."""
    failures: dict[int, str]
    """Reason by seed: the last line of the run's log."""
    reached: int
    """Number of seeds that reached the target."""
    summary: dict[str, Interval | None]
    """Mean and interval of each measure over the seeds that finished."""
    pass_at_k: dict[int, Interval]
    versus_baseline: dict[str, Interval | None]
    """Differences by measure, paired by seed, over the seeds that finished in both variants."""


class Results(BaseModel):
    """A whole comparison."""

    config: dict[str, object]
    """The configuration that all runs have in common."""
    rollouts: int
    """Completions that each run may generate."""
    seeds: list[int]
    baseline: str
    target: float
    """Held-out pass@1 to reach, mean over the evaluation tasks."""
    variants: dict[str, VariantResult]

    def cost_ratio(self, name: str) -> float | None:
        """Rollouts to the target relative to the baseline's, over the seeds of both; None if the baseline's are 0."""
        own, base = self.variants[name].runs, self.variants[self.baseline].runs
        shared = [seed for seed in own if seed in base]
        cost, base_cost = (
            sum(spent_to_reach(r.curve.rollouts, r.curve.accuracy, self.target, self.rollouts) for r in runs)
            for runs in ([own[seed] for seed in shared], [base[seed] for seed in shared])
        )
        return cost / base_cost if base_cost else None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read results.json. Raises pydantic's ValidationError for any other file."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def default_target(baseline: Sequence[RunResult]) -> float:
    """The accuracy after ``TARGET_SHARE`` of the baseline's gain, mean over its seeds; it needs at least one."""
    start = float(np.mean([run.curve.accuracy[0] for run in baseline]))
    end = float(np.mean([run.curve.accuracy[-1] for run in baseline]))
    return round(start + TARGET_SHARE * (end - start), 4)


def variant_result(
    overrides: Sequence[str],
    runs: Mapping[int, RunResult],
    failures: Mapping[int, str],
    baseline: Mapping[int, RunResult],
    target: float,
    budget: float,
) -> VariantResult:
    """Means and differences of one variant over its seeds."""
    ks = sorted(next(iter(runs.values())).pass_at_k) if runs else []
    own, base = ({name: _known(part, name, target, budget) for name in MEASURES} for part in (runs, baseline))
    return VariantResult(
        overrides=list(overrides),
        runs=dict(runs),
        failures=dict(failures),
        reached=sum(run.reaches(target, budget) for run in runs.values()),
        summary={name: mean_interval(list(own[name].values())) if own[name] else None for name in MEASURES},
        pass_at_k={k: mean_interval([run.pass_at_k[k] for run in runs.values()]) for k in ks},
        versus_baseline={name: _difference(own[name], base[name]) for name in MEASURES},
    )


def _known(runs: Mapping[int, RunResult], name: str, target: float, budget: float) -> dict[int, float]:
    """The measure by seed, for the runs that have it."""
    values = {seed: run.measure(name, target, budget) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _difference(own: Mapping[int, float], base: Mapping[int, float]) -> Interval | None:
    seeds = [seed for seed in own if seed in base]
    return paired_difference([own[seed] for seed in seeds], [base[seed] for seed in seeds]) if seeds else None
