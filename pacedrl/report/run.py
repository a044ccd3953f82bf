"""The logs of a run as the report reads them, whole or still being written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pacedrl.errors import InputError

Floats = NDArray[np.float64]
Row = dict[str, Any]

MOST_LINES = 8
"""Configurations on one page: as many as there are colours that everybody can tell apart."""


@dataclass(frozen=True)
class RunLogs:
    """``config`` is the resolved configuration; the others are the rows of the run's logs, by step."""

    name: str
    folder: Path
    config: Row
    metrics: list[Row]
    evals: list[Row]
    groups: list[Row]
    samples: list[Row]

    def series(self, name: str) -> Floats:
        """A metric at every step; NaN where it is null or was not logged yet in the run's version."""
        return column(self.metrics, name)

    @property
    def steps(self) -> Floats:
        """Numbers of the steps in ``metrics``, from 1."""
        return self.series("step")

    @property
    def tasks(self) -> list[str]:
        """Held-out tasks of which every evaluation has pass@1, in the order of the configuration."""
        names = [name for name in (self.evals[-1] if self.evals else {}) if _is_pass_at_1(name)]
        return [name.removesuffix("/pass@1") for name in names if all(name in row for row in self.evals)]


def column(rows: Sequence[Row], name: str) -> Floats:
    """One number of each row, NaN where there is none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)


def _is_pass_at_1(name: str) -> bool:
    return name.endswith("/pass@1")


def load_run(folder: Path) -> RunLogs:
    """Read a run's folder. A last line that is half-written, as of a run that goes on, is left out.

    Raises InputError for a folder that holds no run, and for a line that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; expected that of a run, such as runs/demo")
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder}: not the folder of a run: it has no config.yaml, which `pacedrl train` writes")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not YAML ({str(error).splitlines()[0]}); expected what `pacedrl train` wrote"
        ) from None
    sections = ("run", "model", "sampling", "recipe")
    if not isinstance(config, dict) or any(name not in config for name in sections):
        raise InputError(f"{path}: not the configuration of a run: expected the sections {', '.join(sections)}")
    logs = {name: _rows(folder / f"{name}.jsonl") for name in ("metrics", "groups", "samples")}
    return RunLogs(folder.resolve().name, folder, config, evals=_rows(folder / "eval.jsonl"), **logs)


def load_runs(folders: Sequence[Path]) -> list[RunLogs]:
    """Several runs, with names that differ: the last parts of their paths, as many as that takes.

    Raises InputError as `load_run`, and for a folder named twice.
    """
    paths = [folder.resolve() for folder in folders]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise InputError(f"{folders[i]}: named twice")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [
        replace(load_run(folder), name=os.sep.join(path.parts[-depth:]))
        for folder, path in zip(folders, paths, strict=True)
    ]


def _rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not text ({error.reason} at byte {error.start}); expected a JSON object a line"
        ) from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number < len(lines):  # it is ended, so nobody is still writing it
            raise InputError(f"{path}, line {number}: expected a JSON object with a step; mend or remove the line")
    return rows


@dataclass(frozen=True)
class Line:
    """Runs of one configuration, which differ in nothing but their seed: one line in a plot."""

    label: str
    runs: list[RunLogs]


def lines_of(runs: Sequence[RunLogs]) -> list[Line]:
    """The runs by configuration, in the order given.

    Raises InputError where there are more than ``MOST_LINES`` configurations.
    """
    groups: dict[str, list[RunLogs]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    if len(groups) > MOST_LINES:
        raise InputError(
            f"{len(groups)} configurations are too many for one page: at most {MOST_LINES} (runs that differ in their "
            "seed count as one)"
        )
    return [Line(_label(members), members) for members in groups.values()]


def _settings(run: RunLogs) -> Row:
    """What runs of one line have in common: all but seed, folder and versions."""
    own = {name: value for name, value in run.config["run"].items() if name not in ("seed", "dir")}
    return {name: value for name, value in run.config.items() if name != "versions"} | {"run": own}


def _label(runs: Sequence[RunLogs]) -> str:
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).removesuffix("seed").rstrip("-_./ ")
    return f"{shared or names[0]} ({len(names)} seeds)"
