"""results.json of a comparison: every run's figures, their means over seeds, and differences to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from pacedrl.intervals import Interval, mean_interval, paired_difference
from pacedrl.lab.measures import MEASURES, RunResult, spent_to_reach

TARGET_SHARE = 0.9
"""Without a target of the user's: this share of the way from the start to where the baseline ends."""


class VariantResult(BaseModel):
    """A recipe, over seeds."""

    overrides: list[str]
    runs: dict[int, RunResult]
    """By seed; the failed ones are missing."""
    failures: dict[int, str]
    """By seed, the last line of what the run said."""
    reached: int
    """Seeds that reached the target."""
    summary: dict[str, Interval | None]
    """By name of a measure, over the seeds that ran."""
    pass_at_k: dict[int, Interval]
    versus_baseline: dict[str, Interval | None]
    """Paired differences, over the seeds that ran in both."""


class Results(BaseModel):
    """All of a comparison."""

    config: dict[str, object]
    """What all runs have in common."""
    rollouts: int
    """The budget of generated completions."""
    seeds: list[int]
    baseline: str
    target: float
    """Of held-out pass@1, mean over the evaluation tasks."""
    variants: dict[str, VariantResult]

    def cost_ratio(self, name: str) -> float | None:
        """Rollouts to the target, in the baseline's, over the seeds of both; None where the baseline's is 0."""
        own, base = self.variants[name].runs, self.variants[self.baseline].runs
        costs = [
            [spent_to_reach(r.curve.rollouts, r.curve.accuracy, self.target, self.rollouts) for r in (own[s], base[s])]
            for s in own
            if s in base
        ]
        below = sum(cost for _, cost in costs)
        return sum(cost for cost, _ in costs) / below if below else None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read results.json. Raises pydantic's ValidationError where it is none."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


def default_target(baseline: Sequence[RunResult]) -> float:
    """What the baseline reaches with most of its rollouts, means over its seeds, of which there must be one."""
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
    """Means and differences of one variant, over its seeds."""
    ks = sorted(next(iter(runs.values())).pass_at_k) if runs else []
    return VariantResult(
        overrides=list(overrides),
        runs=dict(runs),
        failures=dict(failures),
        reached=sum(run.reaches(target, budget) for run in runs.values()),
        summary={name: _summary(name, list(runs.values()), target, budget) for name in MEASURES},
        pass_at_k={k: mean_interval([run.pass_at_k[k] for run in runs.values()]) for k in ks},
        versus_baseline={name: _difference(name, runs, baseline, target, budget) for name in MEASURES},
    )


def _summary(name: str, runs: Sequence[RunResult], target: float, budget: float) -> Interval | None:
    values = [value for run in runs if (value := run.measure(name, target, budget)) is not None]
    return mean_interval(values) if values else None


def _difference(
    name: str, runs: Mapping[int, RunResult], baseline: Mapping[int, RunResult], target: float, budget: float
) -> Interval | None:
    values = [
        (run.measure(name, target, budget), baseline[seed].measure(name, target, budget))
        for seed, run in runs.items()
        if seed in baseline
    ]
    known = [(own, base) for own, base in values if own is not None and base is not None]
    return paired_difference([own for own, _ in known], [base for _, base in known]) if known else None
