"""Results of evaluations as tables and lines for the console."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich import box
from rich.table import Table

from pacedrl.evaluation.evaluate import TaskResult
from pacedrl.evaluation.metrics import Estimate
from pacedrl.view import left_out


def headline(step: int, results: Sequence[TaskResult]) -> str:
    """One line with the first figure of each task."""
    figures = ", ".join(
        f"{result.task} {next(iter(result.figures.values())).mean:.3f}{left_out(result.left_out)}" for result in results
    )
    return f"step {step}  {next(iter(results[0].figures))} on held-out prompts: {figures}"


def evaluation_table(title: str, results: Sequence[TaskResult]) -> Table:
    """One row per task: pass@k and mean@n with 95% intervals, and the number of distinct (correct) answers."""
    rates = [name for name in results[0].figures if "@" in name]
    caption = "means over prompts, 95% bootstrap intervals; distinct answers a prompt (correct ones)"
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=caption)
    table.add_column("task (prompts)", no_wrap=True)
    for heading in (*rates, "distinct"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [_with_interval(result.figures[name]) for name in rates]
        distinct, correct = result.figures["distinct"].mean, result.figures["distinct_correct"].mean
        table.add_row(f"{result.task} ({result.prompts})", *cells, f"{distinct:.1f} ({correct:.1f})")
    return table


def _with_interval(estimate: Estimate) -> str:
    # Without leading zeros, three such columns fit into 80 characters.
    low, high = (f"{bound:.2f}".removeprefix("0") for bound in (estimate.low, estimate.high))
    return f"{estimate.mean:.2f} {low}–{high}"


def evaluation_notes(results: Sequence[TaskResult]) -> list[str]:
    """Return one line on each task with truncated or unjudged completions."""
    truncated = [f"{r.task}: {r.truncated:.0%} of completions were cut at the limit" for r in results if r.truncated]
    errors = [
        f"{r.task}: the verifier failed on {r.errors:,} of {r.completions:,} completions ({r.left_out:.1%}); the "
        "figures are without them"
        for r in results
        if r.errors
    ]
    return truncated + errors


def before_after_table(evals: Sequence[Mapping[str, float]], tasks: Sequence[str], ks: Sequence[int]) -> Table:
    """pass@k of each task in the first and the last row of eval.jsonl, and the mean over tasks.

    A task or a k that was not measured in both rows is left out.
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
        columns = zip(*rows.values(), strict=True)
        rows["mean"] = [(fmean(a for a, _ in column), fmean(b for _, b in column)) for column in columns]
    for task, pairs in rows.items():
        cells = [cell for a, b in pairs for cell in (f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}")]
        table.add_row(labels.get(task, task), *cells, style="bold" if task == "mean" else None)
    return table
