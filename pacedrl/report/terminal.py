"""``pacedrl watch --terminal``: a dashboard of figures, sparklines and completions. It needs no matplotlib."""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pacedrl.errors import InputError
from pacedrl.logs import Row
from pacedrl.report.completions import Outcome, outcome
from pacedrl.report.findings import diagnose
from pacedrl.report.held_out import headline
from pacedrl.report.run import RunLogs, load_run
from pacedrl.report.run_state import RunState, run_state, stamp
from pacedrl.text import plain

PERIOD_S = 2.0
BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 32
SNIPPET = 400
"""Characters of a text from which its line is made."""

SIGNALS: tuple[tuple[str, str, str], ...] = (
    ("reward", "reward/mean", ".3f"),
    ("mixed groups", "reward/mixed_groups", ".0%"),
    ("accuracy, estimated", "accuracy/estimate_mean", ".3f"),
    ("accuracy, observed", "accuracy/observed_mean", ".3f"),
    ("estimate's error (MAE)", "accuracy/mae", ".3f"),
    ("entropy, nats per token", "entropy", ".3f"),
    ("length, tokens", "completion/length_mean", ".1f"),
    ("truncated", "completion/truncated", ".0%"),
)
MARKS: dict[Outcome, tuple[str, str]] = {
    "right": ("✓", "green"),
    "wrong": ("✗", "red"),
    "between": ("◐", "yellow"),
    "error": ("!", "yellow"),
    "none": ("–", "dim"),
}


def follow(folders: Sequence[Path], console: Console) -> None:
    """Show the runs until Ctrl-C (KeyboardInterrupt), or once if the output is not a terminal.

    Raises InputError if the output is not a terminal and there is no run to show.
    """
    if not console.is_terminal:
        states = [run_state(folder, time.time()) for folder in folders]
        console.print(dashboard(list(zip(map(load_run, folders), states, strict=True)), console.height))
        return
    seen = ""
    runs: list[RunLogs | str] = []
    with Live(console=console, auto_refresh=False) as live:
        while True:
            now = stamp(folders)
            if now != seen:
                runs, seen = [_loaded(folder) for folder in folders], now
            states = [run_state(folder, time.time()) for folder in folders]
            live.update(dashboard(list(zip(runs, states, strict=True)), console.height), refresh=True)
            time.sleep(PERIOD_S)


def _loaded(folder: Path) -> RunLogs | str:
    """Return the run, or the reason why there is none yet."""
    try:
        return load_run(folder)
    except InputError as error:
        return str(error)


def dashboard(runs: Sequence[tuple[RunLogs | str, RunState]], height: int) -> RenderableType:
    """Return a panel for each run, ``height`` lines in all if possible. A text explains why a run cannot be shown."""
    each = height // len(runs)
    return Group(*(_panel(run, state, each) for run, state in runs))


def _panel(run: RunLogs | str, state: RunState, height: int) -> Panel:
    style = {"running": "green", "finished": "blue", "stopped": "yellow", "waiting": "dim"}[state.state]
    head = Table.grid(padding=(0, 2, 0, 0))
    head.add_row(
        ProgressBar(total=max(state.steps, 1), completed=state.step, width=24),
        Text(plain(state.text), style="yellow" if state.state == "stopped" else ""),
    )
    parts: list[RenderableType] = [head]
    if isinstance(run, RunLogs) and run.metrics:
        findings = [
            Text(plain(f"● {finding}"), style="red" if finding.severity == "bad" else "yellow")
            for finding in diagnose(run)
        ]
        figures = _figures(run)
        parts += [Text(plain(headline(run))), Text(), figures, *findings]
        room = height - figures.row_count - 2 * len(findings) - 9
        if run.samples and room > 0:
            parts.append(_completions(run.samples[-min(room, 8) :]))
    elif isinstance(run, str) and state.state != "waiting":
        parts.append(Text(plain(run)))
    return Panel(Group(*parts), title=Text(plain(state.name), style="bold"), title_align="left", border_style=style)


def _figures(run: RunLogs) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True, justify="right", style="bold")
    table.add_column(no_wrap=True, style="dim")
    series = [(label, run.series(name).tolist(), form) for label, name, form in SIGNALS]
    series.insert(1, held_out(run.evals))
    for label, values, form in series:
        known = [value for value in values if not math.isnan(value)]
        if known:
            span = f"{min(known):{form}} to {max(known):{form}}"
            table.add_row(label, sparkline(values), f"{known[-1]:{form}}", span)
    return table


def held_out(evals: Sequence[Row]) -> tuple[str, list[float], str]:
    """Return label, values and format of the smallest pass@k measured: its mean over tasks at each evaluation."""
    found = [re.fullmatch(r".*/pass@(\d+)", name) for row in evals for name in row]
    k = min((int(match[1]) for match in found if match), default=1)
    tasks = [[value for name, value in row.items() if name.endswith(f"/pass@{k}")] for row in evals]
    return f"held-out pass@{k}", [sum(values) / len(values) if values else math.nan for values in tasks], ".3f"


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Draw at most ``width`` bars, each the mean of an equal share of the values; a gap where all of them are NaN."""
    count = min(width, len(values))
    shares = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    known = [[value for value in share if not math.isnan(value)] for share in shares]
    means = [sum(share) / len(share) if share else math.nan for share in known]
    finite = [mean for mean in means if not math.isnan(mean)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)

    def bar(mean: float) -> str:
        if math.isnan(mean):
            return " "
        return BARS[0] if low == high else BARS[round((mean - low) / (high - low) * (len(BARS) - 1))]

    return "".join(map(bar, means))


def _completions(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0))
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("prompt", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("completion", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in reversed(rows):
        mark, style = MARKS[outcome(row)]
        said = row.get("error") or row.get("completion") or ""
        table.add_row(str(row.get("step")), Text(mark, style=style), _snippet(row.get("prompt")), _snippet(said))
    return table


def _snippet(content: Any) -> Text:
    """Return one line of a text, or of the last message of a chat."""
    text = content[-1].get("content") or "" if isinstance(content, list) and content else content
    return Text(plain(str(text)[:SNIPPET]))
