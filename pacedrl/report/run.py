"""A run as the report reads it: its configuration and its logs, finished or still being written."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from pacedrl.errors import InputError
from pacedrl.logs import Row, read_rows

Floats = NDArray[np.float64]

MOST_VARIANTS = 8
"""Maximum number of configurations on one page: the number of colours that everybody can tell apart."""


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
        """Return a metric at every step; NaN where it is null or was not logged."""
        return column(self.metrics, name)

    @property
    def steps(self) -> Floats:
        """Numbers of the steps in ``metrics``, from 1."""
        return self.series("step")

    @property
    def tasks(self) -> list[str]:
        """Held-out tasks whose pass@1 is in every evaluation, in the order of the configuration."""
        names = [name for name in (self.evals[-1] if self.evals else {}) if name.endswith("/pass@1")]
        return [name.removesuffix("/pass@1") for name in names if all(name in row for row in self.evals)]


def column(rows: Sequence[Row], name: str) -> Floats:
    """Return one number of each row, NaN where there is none."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)


def load_run(folder: Path) -> RunLogs:
    """Read the folder of a run. Raises InputError if it holds no run, and like `read_rows`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; expected that of a run, such as runs/demo")
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder}: not the folder of a run: it has no config.yaml, which `pacedrl train` writes")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not YAML ({reason}); expected what `pacedrl train` wrote") from None
    sections = ("run", "model", "sampling", "recipe")
    if not isinstance(config, dict) or any(name not in config for name in sections):
        raise InputError(f"{path}: not the configuration of a run: expected the sections {', '.join(sections)}")
    logs = {name: read_rows(folder / f"{name}.jsonl") for name in ("metrics", "groups", "samples")}
    return RunLogs(folder.resolve().name, folder, config, evals=read_rows(folder / "eval.jsonl"), **logs)


def load_runs(folders: Sequence[Path]) -> list[RunLogs]:
    """Read several runs and name them by the last parts of their paths, as many as make the names differ.

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


@dataclass(frozen=True)
class Variant:
    """Runs of one configuration, which differ only in their seed; plots show them as one line."""

    label: str
    runs: list[RunLogs]


def variants_of(runs: Sequence[RunLogs]) -> list[Variant]:
    """Group the runs by configuration. Raises InputError for more than ``MOST_VARIANTS`` configurations."""
    groups: dict[str, list[RunLogs]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    if len(groups) > MOST_VARIANTS:
        raise InputError(
            f"{len(groups)} configurations are too many for one page: at most {MOST_VARIANTS} (runs that differ in "
            "their seed count as one)"
        )
    return [Variant(_label(members), members) for members in groups.values()]


def _settings(run: RunLogs) -> Row:
    """Return what the runs of one variant have in common: all settings but seed and folder."""
    own = {name: value for name, value in run.config["run"].items() if name not in ("seed", "dir")}
    return {name: value for name, value in run.config.items() if name != "versions"} | {"run": own}


def _label(runs: Sequence[RunLogs]) -> str:
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).removesuffix("seed").rstrip("-_./ ")
    return f"{shared or names[0]} ({len(names)} seeds)"
