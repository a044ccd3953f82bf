"""Console output during a run: progress bars, lines and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LEFT_OUT_SHARE = 0.02
"""A figure from which more than this share of completions is missing is shown with a note."""


def left_out(share: float) -> str:
    """The note beside a figure that leaves out this share of completions; empty if the share is small."""
    return f" ({share:.0%} not judged)" if share > LEFT_OUT_SHARE else ""


class View:
    """Shows what happens in a run; it must not influence the run.

    This one shows only warnings, on standard error; with ``quiet`` not even those.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)

    def start(self, step: int, total: int) -> None: ...
    def phase(self, name: str, total: int) -> None: ...
    def advance(self, count: int) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def line(self, text: str) -> None: ...
    def stop(self) -> None: ...

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", markup=False, style="yellow")


class ConsoleView(View):
    """Shows a progress bar with reward, estimated and observed accuracy, and rollouts per second.

    If the output is not a terminal, it prints a line with the same figures every few steps instead.
    """

    LINES = 20
    """Maximum number of lines per run if the output is not a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__(quiet)
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
            self.line(f"resuming after step {step}")

    def phase(self, name: str, total: int) -> None:
        if not self.console.is_terminal and name != "sampling":  # once a step: the step's own line will do
            self.line(f"{name} ({total:,})")
        self.progress.reset(self.inner, description=f"  {name}", total=total, visible=True)

    def advance(self, count: int) -> None:
        self.progress.advance(self.inner, count)

    def step(self, row: Mapping[str, Any]) -> None:
        estimate, observed = row["accuracy/estimate_mean"], row["accuracy/observed_mean"]
        accuracy = "" if math.isnan(estimate) else f"accuracy est {estimate:.2f} obs {observed:.2f}  "
        figures = (
            f"reward {row['reward/mean']:.3f}{left_out(row['verifier/errors'] / row['rollouts/step'])}  {accuracy}"
            f"{row['rollouts/step'] / row['time/step']:.1f} rollouts/s"
        )
        self.progress.update(self.bar, completed=row["step"], figures=figures)
        every = max(1, self.total // self.LINES)
        if not self.console.is_terminal and (row["step"] % every == 0 or row["step"] == self.total):
            self.line(f"step {row['step']}/{self.total}  {figures}")

    def stop(self) -> None:
        self.progress.update(self.inner, visible=False)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)
