"""How far a run has come, and whether it goes on, by its folder alone: it may run elsewhere and be synced here."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

FILES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "groups.jsonl", "samples.jsonl")
TAIL_BYTES = 1 << 17
PATIENCE_S = 60.0
PATIENCE_STEPS = 10
"""A run looks stopped when nothing was written for so long: the longer of a minute and ten of its steps."""


@dataclass(frozen=True)
class Status:
    """``step`` of ``steps``, both 0 while there is none; ``text`` says it all in one sentence."""

    name: str
    state: Literal["waiting", "running", "stopped", "finished"]
    step: int
    steps: int
    text: str


def status(folder: Path, now: float) -> Status:
    """Of a run at ``now``, in seconds since the epoch. Never raises for what is missing or half-written."""
    name = folder.resolve().name
    if not folder.is_dir():
        return Status(name, "waiting", 0, 0, f"waiting for the folder {folder}")
    settings = _settings(folder)
    if settings is None:
        return Status(name, "waiting", 0, 0, f"waiting for {folder / 'config.yaml'}")
    steps = int(settings.get("steps") or 0)
    rows = _last_rows(folder / "metrics.jsonl")
    if not rows:
        return Status(name, "waiting", 0, steps, "waiting for the first step")
    step, took = int(rows[-1]["step"]), statistics.median(float(row["time/step"]) for row in rows)
    age = max(now - _last_written(folder), 0.0)
    where = f"step {step:,} of {steps:,}"
    budget = settings.get("max_rollouts")
    if step >= steps or (budget is not None and rows[-1]["rollouts/generated"] >= budget):
        return Status(name, "finished", step, steps, f"finished: {where}, {duration(age)} ago")
    if age > max(PATIENCE_S, PATIENCE_STEPS * took):
        text = f"{where}, {duration(age)} ago, where a step takes {duration(took)}: it looks stopped, or not synced"
        return Status(name, "stopped", step, steps, text)
    left = f"about {duration((steps - step) * took)} to go" if budget is None else "running"
    return Status(name, "running", step, steps, f"{where}, {duration(age)} ago; {duration(took)} a step, {left}")


def stamp(folders: Sequence[Path]) -> str:
    """Changes whenever a log of one of the runs does, or its folder appears."""
    seen: list[tuple[object, ...]] = [(str(folder), folder.is_dir()) for folder in folders]
    for path in (folder / name for folder in folders for name in FILES):
        try:
            found = path.stat()
        except OSError:
            continue  # not there yet
        seen.append((str(path), found.st_size, found.st_mtime_ns, found.st_ino))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


def duration(seconds: float) -> str:
    """In the unit that reads best: ``0.5 s``, ``42 s``, ``7 min``, ``3.2 h``, ``4 days``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _settings(folder: Path) -> dict[str, Any] | None:
    """The section ``run`` of config.yaml; None while the file is missing or cut short."""
    try:
        run = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["run"]
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return run if isinstance(run, dict) else None


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines at the end of a log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    whole = lines[:-1] if size <= TAIL_BYTES else lines[1:-1]
    try:
        return [json.loads(line) for line in whole]
    except ValueError:
        return []  # being replaced


def _last_written(folder: Path) -> float:
    times = []
    for name in FILES:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
