"""The progress of a run and whether it still runs, read from its folder alone: it may run elsewhere and be synced."""

import hashlib
import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from pacedrl.logs import Row, last_rows

FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "groups.jsonl", "samples.jsonl")
PATIENCE_S = 60.0
PATIENCE_STEPS = 10
"""A run looks stopped if nothing was written for a minute or for ten of its steps, whichever is longer."""


@dataclass(frozen=True)
class RunState:
    """``step`` of ``steps``, both 0 while unknown; ``text`` says everything in one sentence."""

    name: str
    state: Literal["waiting", "running", "stopped", "finished"]
    step: int
    steps: int
    text: str


def run_state(folder: Path, now: float) -> RunState:
    """Return the state of a run at ``now``, in seconds since the epoch. Missing or half-written files never raise."""
    name = folder.resolve().name
    if not folder.is_dir():
        return RunState(name, "waiting", 0, 0, f"waiting for the folder {folder}")
    settings = _settings(folder)
    if settings is None:
        return RunState(name, "waiting", 0, 0, f"waiting for {folder / 'config.yaml'}")
    steps = int(settings.get("steps") or 0)
    rows = last_rows(folder / "metrics.jsonl")
    if not rows:
        return RunState(name, "waiting", 0, steps, "waiting for the first step")
    step, took = int(rows[-1]["step"]), statistics.median(float(row["time/step"]) for row in rows)
    written = max((found.st_mtime for _, found in _stats(folder)), default=0.0)
    age = max(now - written, 0.0)
    where = f"step {step:,} of {steps:,}"
    budget = settings.get("max_rollouts")
    if step >= steps or (budget is not None and rows[-1]["rollouts/generated"] >= budget):
        return RunState(name, "finished", step, steps, f"finished: {where}, {_duration(age)} ago")
    if age > max(PATIENCE_S, PATIENCE_STEPS * took):
        text = f"{where}, {_duration(age)} ago; a step takes {_duration(took)}: it looks stopped, or not synced"
        return RunState(name, "stopped", step, steps, text)
    left = f"about {_duration((steps - step) * took)} to go" if budget is None else "running"
    return RunState(name, "running", step, steps, f"{where}, {_duration(age)} ago; {_duration(took)} per step, {left}")


def stamp(folders: Sequence[Path]) -> str:
    """Return a text that changes whenever a log of one of the runs changes or its folder appears."""
    seen: list[object] = [(str(folder), folder.is_dir()) for folder in folders]
    for folder in folders:
        seen += [(path, found.st_size, found.st_mtime_ns, found.st_ino) for path, found in _stats(folder)]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def _duration(seconds: float) -> str:
    """Write a duration in the unit that reads best: ``0.5 s``, ``42 s``, ``7 min``, ``3.2 h``, ``4 days``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _settings(folder: Path) -> Row | None:
    """Return the section ``run`` of config.yaml; None while the file is missing or cut short."""
    try:
        run = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["run"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return run if isinstance(run, dict) else None


def _stats(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return path and status of each file of the run that exists."""
    found = []
    for path in (folder / name for name in FILES):
        with suppress(OSError):
            found.append((str(path), path.stat()))
    return found
