"""A comparison in the terminal: its progress while it runs and the table of its results, with the texts of cells."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pacedrl.intervals import Interval
from pacedrl.lab.measures import MEASURES
from pacedrl.lab.plan import Plan, Run, RunQueue
from pacedrl.lab.results import Results, VariantResult
from pacedrl.logs import last_rows
from pacedrl.view import left_out

SHOWN = ("rollouts_to_target", "area", "final", "mixed_groups", "estimate_mae")


class LiveTable:
    """The progress of each variant; if the output is not a terminal, one line for each run that ends."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def update(self, queue: RunQueue) -> None:
        if self.console.is_terminal:
            self.live.update(self._table(queue), refresh=True)

    def ended(self, run: Run, failure: str | None) -> None:
        if failure is not None or not self.console.is_terminal:
            text = "finished" if failure is None else f"FAILED: {failure} (its whole output: {run.log})"
            self.console.print(f"{run.variant}, seed {run.seed}: {text}", markup=False, highlight=False, soft_wrap=True)

    def _table(self, queue: RunQueue) -> Table:
        table = Table("variant", "finished", "failed", "running now", box=box.SIMPLE_HEAD)
        for name in self.plan.variants:
            finished = sum(run.variant == name for run in queue.finished)
            running = [run for run, _ in queue.running.values() if run.variant == name]
            now = ", ".join(f"seed {run.seed}: {self._done(run)}" for run in running)
            table.add_row(name, f"{finished}/{len(self.plan.seeds)}", str(len(queue.failed[name]) or ""), now)
        return table

    def _done(self, run: Run) -> str:
        rows = last_rows(run.folder / "metrics.jsonl")
        if not rows:
            return "starting"
        row = rows[-1]
        reward = "none judged" if row["reward/mean"] is None else f"reward {row['reward/mean']:.2f}"
        return f"{row['rollouts/generated'] / self.plan.rollouts:.0%}, {reward}"


def results_table(results: Results) -> Table:
    """Means and intervals over seeds; bold if the difference to the baseline is not zero."""
    seeds = "1 seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"
    title = f"{seeds}, {results.rollouts:,} rollouts each, target {results.target:.3f}"
    table = Table("variant", "seeds", *(MEASURES[name] for name in SHOWN), title=title, box=box.SIMPLE_HEAD)
    for name, variant in results.variants.items():
        cells = [measure_text(results, name, measure) for measure in SHOWN]
        label = name if name != results.baseline else f"{name} (baseline)"
        table.add_row(
            label + missing(variant),
            f"{len(variant.runs)}/{len(results.seeds)}",
            *(f"[bold]{text}[/bold]" if differs else text for text, differs in cells),
        )
    return table


def missing(variant: VariantResult) -> str:
    """Return the note beside a variant's accuracies that leave out completions; empty if they leave out few."""
    return left_out(max((run.left_out for run in variant.runs.values()), default=0.0))


def measure_text(results: Results, name: str, measure: str) -> tuple[str, bool]:
    """Return a variant's mean and interval of one measure, and whether it differs from the baseline's.

    If only n of m seeds reached the target, its cost is written ``≥ mean (low–high) (n/m)``.
    """
    variant = results.variants[name]
    text = interval_text(variant.summary[measure], measure)
    if measure.endswith("_to_target") and variant.reached < len(variant.runs):
        text = f"≥ {text} ({variant.reached}/{len(variant.runs)})"
    difference = variant.versus_baseline[measure]
    return text, name != results.baseline and difference is not None and difference.excludes_zero


def interval_text(interval: Interval | None, measure: str = "") -> str:
    """``mean (low–high)``, costs in whole numbers."""
    if interval is None:
        return ""
    digits = 0 if measure.endswith("_to_target") else 3
    mean = f"{interval.mean:,.{digits}f}"
    return mean if interval.low is None else f"{mean} ({interval.low:,.{digits}f}–{interval.high:,.{digits}f})"


def failures(results: Results) -> list[str]:
    """A line for each run that failed."""
    return [
        f"{name}, seed {seed}: {reason}"
        for name, variant in results.variants.items()
        for seed, reason in variant.failures.items()
    ]


def unjudged(results: Results) -> list[str]:
    """A line for each variant whose verifier failed on completions."""
    counts = {name: sum(run.verifier_errors for run in v.runs.values()) for name, v in results.variants.items()}
    return [
        f"{name}: the verifier failed on {count:,} completions, which were left out of training"
        for name, count in counts.items()
        if count
    ]
