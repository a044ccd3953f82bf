"""Stand-in for the owner's module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pacedrl.errors import InputError


@dataclass(frozen=True)
class RunLogs:
    name: str
    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def load_run(folder: Path) -> RunLogs:
    if not (folder / "config.yaml").exists():
        raise InputError(f"{folder}: no config.yaml; name the folder of a run")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    rows = [_rows(folder / f"{log}.jsonl") for log in ("metrics", "eval", "groups", "samples")]
    return RunLogs(folder.name, folder, config, *rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
