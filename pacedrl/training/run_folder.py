"""A run's folder: the resolved configuration and the line-by-line logs, which a resumed run continues exactly."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
import yaml

import pacedrl
from pacedrl.config import Config, dump_config, load_config
from pacedrl.errors import InputError

LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "groups.jsonl")
FREE_SECTIONS = ("eval", "checkpoint", "tracking", "verifier", "versions", "scale")
"""Sections that may change when a run is resumed, as all of ``run`` but the seed may: they do not alter what a given
step computes."""


class RunFolder:
    """``config.yaml`` and the line-by-line ``LOGS`` in the folder of a run.

    Making one makes the folder but writes nothing into it. Of several processes only one ``writes``; the others' only
    looks. Raises InputError when the folder cannot be written to or
    holds a run of another configuration.
    """

    def __init__(self, config: Config, writes: bool = True) -> None:
        self.config = config
        self.path = config.run.dir
        self.writes = writes
        if writes:
            self._require_writable()
        refuse_another_run(self.path, config)

    def _require_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"run.dir: cannot write to '{self.path}' ({error.strerror}); choose another with run.dir=PATH"
            ) from None

    def open_at(self, step: int) -> None:
        """Write the configuration; drop log lines of later steps and any half-written one: they will come again."""
        if not self.writes:
            return
        resolved = dump_config(self.config) | {"versions": _versions()}
        replace_text(self.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        for name in LOGS:
            path = self.path / name
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                replace_text(path, "".join(line + "\n" for line in kept))

    def log(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one JSON object; numbers that are not finite are written as null."""
        if not self.writes:
            return
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), ensure_ascii=True) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All rows of a log, none if it does not exist yet."""
        path = self.path / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def refuse_another_run(folder: Path, config: Config) -> None:
    """Raise InputError when the folder holds a run whose settings differ in what a run must keep."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    before, now = _settings(_read_config(path)), _settings(config)
    for field, value in now.items():
        if field not in before or before[field] != value:
            raise InputError(
                f"{path}: this run was started with {field} = {before.get(field)!r}, the config now says "
                f"{value!r}; undo the change, or start another run with run.dir=PATH"
            )


def _read_config(path: Path) -> Config:
    try:
        return load_config(path)
    except InputError as error:
        raise InputError(
            f"{error}; this is not the config.yaml of a run of this version: choose another folder with run.dir=PATH"
        ) from None


def _settings(config: Config) -> dict[str, Any]:
    """The settings that a run must keep, by dotted name."""
    tree = dump_config(config)
    tree["run"] = {"seed": tree["run"]["seed"]}
    kept = {section: values for section, values in tree.items() if section not in FREE_SECTIONS}
    recipe = {"recipe": kept.pop("recipe")}
    return recipe | {f"{section}.{field}": value for section, values in kept.items() for field, value in values.items()}


def _versions() -> dict[str, str]:
    packages = (pacedrl, torch, transformers, numpy)
    return {package.__name__: str(package.__version__) for package in packages} | {"python": platform.python_version()}


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf  # half-written when the process was killed


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
