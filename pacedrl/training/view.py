"""What a person sees of a run while it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pacedrl.evaluation.evaluate import TaskResult
from pacedrl.evaluation.metrics import Estimate, left_out


class View(Protocol):
    """Told what happens; must not change it."""

    def start(self, step: int, total: int) -> None: ...
    def phase(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def evaluation(self, step: int, results: Sequence[TaskResult]) -> None: ...
    def warn(self, text: str) -> None: ...
    def stop(self) -> None: ...


class SilentView:
    """Shows nothing but warnings, on standard error; ``quiet``: not even those."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)

    def start(self, step: int, total: int) -> None: ...
    def phase(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def evaluation(self, step: int, results: Sequence[TaskResult]) -> None: ...
    def stop(self) -> None: ...

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False, style="yellow")


class ConsoleView:
    """A progress bar with reward, accuracy estimate against observation and rollouts per second.

    Where the output is no terminal, a line of the same figures every few steps instead.
    """

    LINES = 20
    """Lines at most, over a run, where there is no terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self.total = 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("/"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("loading", total=None, figures="")
        self.inner = self.progress.add_task("", total=None, figures="", visible=False)

    def __enter__(self) -> ConsoleView:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def start(self, step: int, total: int) -> None:
        self.total = total
        self.progress.update(self.bar, description="training", completed=step, total=total)
        if step:
            self._line(f"resuming after step {step}")

    def phase(self, name: str, total: int) -> None:
        if not self.console.is_terminal and name != "sampling":  # once a step: the step's own line will do
            self._line(f"{name} ({total:,})")
        self.progress.reset(self.inner, description=f"  {name}", total=total, visible=True)

    def advance(self, count: int) -> None:
        self.progress.advance(self.inner, count)

    def step(self, row: Mapping[str, Any]) -> None:
        figures = (
            f"reward {row['reward/mean']:.3f}{left_out(row['verifier/errors'] / row['rollouts/step'])}  "
            f"{self._accuracy(row)}"
            f"{row['rollouts/step'] / row['time/step']:.1f} rollouts/s"
        )
        self.progress.update(self.bar, completed=row["step"], figures=figures)
        every = max(1, self.total // self.LINES)
        if not self.console.is_terminal and (row["step"] % every == 0 or row["step"] == self.total):
            self._line(f"step {row['step']}/{self.total}  {figures}")

    def _accuracy(self, row: Mapping[str, Any]) -> str:
        """Estimated against observed; nothing for a recipe that estimates nothing."""
        estimate, observed = row["accuracy/estimate_mean"], row["accuracy/observed_mean"]
        return "" if math.isnan(estimate) else f"accuracy est {estimate:.2f} obs {observed:.2f}  "

    def evaluation(self, step: int, results: Sequence[TaskResult]) -> None:
        figures = ", ".join(
            f"{result.task} {next(iter(result.figures.values())).mean:.3f}{left_out(result.left_out)}"
            for result in results
        )
        first = next(iter(results[0].figures))
        self._line(f"step {step}  {first} on held-out prompts: {figures}")

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False, style="yellow")

    def stop(self) -> None:
        self.progress.update(self.inner, visible=False)

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


EVALUATION_CAPTION = "means over prompts, 95% bootstrap intervals; distinct answers a prompt (correct ones)"


def evaluation_table(title: str, results: Sequence[TaskResult]) -> Table:
    """One row a task: pass@k and mean@n with 95% intervals, and the number of distinct answers, correct ones apart."""
    rates = [name for name in results[0].figures if "@" in name]
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=EVALUATION_CAPTION)
    table.add_column("task (prompts)", no_wrap=True)
    for heading in (*rates, "distinct"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [_with_interval(result.figures[name]) for name in rates]
        distinct, correct = result.figures["distinct"].mean, result.figures["distinct_correct"].mean
        table.add_row(f"{result.task} ({result.prompts})", *cells, f"{distinct:.1f} ({correct:.1f})")
    return table


def _with_interval(estimate: Estimate) -> str:
    # Without leading zeros three such columns fit a terminal of 80.
    low, high = (f"{bound:.2f}".removeprefix("0") for bound in (estimate.low, estimate.high))
    return f"{estimate.mean:.2f} {low}–{high}"


def evaluation_notes(results: Sequence[TaskResult]) -> list[str]:
    """What a reader of the table must know beside it."""
    truncated = [f"{r.task}: {r.truncated:.0%} of completions were cut at the limit" for r in results if r.truncated]
    errors = [
        f"{r.task}: the verifier failed on {r.errors:,} of {r.completions:,} completions ({r.left_out:.1%}); the "
        "figures are without them"
        for r in results
        if r.errors
    ]
    return truncated + errors


def before_after_table(evals: Sequence[Mapping[str, float]], tasks: Sequence[str], ks: Sequence[int]) -> Table:
    """pass@k of each task in the first and the last row of eval.jsonl, and their mean over tasks.

    A task or a k that was not measured in both, because it was changed between, is left out.
    """
    first, last = evals[0], evals[-1]
    tasks = [task for task in tasks if any(f"{task}/pass@{k}" in first for k in ks)]
    ks = [k for k in ks if all(f"{task}/pass@{k}" in row for row in (first, last) for task in tasks)]
    table = Table(title=f"held-out prompts, before and after {int(last['step'])} steps", box=box.SIMPLE_HEAD)
    table.add_column("task")
    for k in ks:
        for heading in (f"pass@{k} before", "after", "change"):
            table.add_column(heading, justify="right")
    rows = {task: [(first[f"{task}/pass@{k}"], last[f"{task}/pass@{k}"]) for k in ks] for task in tasks}
    labels = {task: task + left_out(max(row.get(f"{task}/left_out", 0.0) for row in (first, last))) for task in tasks}
    if len(tasks) > 1:
        rows["mean"] = [(_mean(rows, i, 0), _mean(rows, i, 1)) for i in range(len(ks))]
    for task, pairs in rows.items():
        cells = [cell for a, b in pairs for cell in (f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")]
        table.add_row(labels.get(task, task), *cells, style="bold" if task == "mean" else None)
    return table


def _mean(rows: Mapping[str, Sequence[tuple[float, float]]], column: int, side: int) -> float:
    return sum(pairs[column][side] for pairs in rows.values()) / len(rows)
