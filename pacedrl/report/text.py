"""Text of unknown origin, made harmless; and settings, put in words."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pacedrl.config import TaskConfig, dump_config, parse_config
from pacedrl.report.run import RunLogs

LONGEST = 200
"""Characters of a value that are shown."""


def plain(text: object) -> str:
    """On one line, with control characters and such as turn the direction of writing shown as their codes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))


def inert(text: object) -> str:
    """`plain`, and escaped for HTML, attributes too."""
    return html.escape(plain(text))


def changed_settings(run: RunLogs) -> dict[str, str]:
    """Settings that differ from the recipe's own, by dotted name; the tasks with what was said of each.

    Raises InputError where this version does not know the recipe.
    """
    recipe = run.config["recipe"]
    usual = _flat(dump_config(parse_config({"recipe": recipe}, str(run.folder / "config.yaml"))))
    own = _flat(run.config)
    return {name: _shown(value) for name, value in own.items() if name not in usual or usual[name] != value}


def settings_between(runs: Sequence[RunLogs]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: each run's value, by dotted name."""
    flat = [_flat(run.config) for run in runs]
    names = {name: None for settings in flat for name in settings}
    values = {name: [_shown(settings.get(name, "—")) for settings in flat] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings but where the run lives and what it was made with."""
    flat: dict[str, Any] = {}
    for section, values in config.items():
        if section == "versions":
            continue
        for name, value in values.items() if isinstance(values, Mapping) else [(None, values)]:
            flat[section if name is None else f"{section}.{name}"] = value
    flat.pop("run.dir", None)
    for name in ("data.train", "data.eval"):
        if isinstance(flat.get(name), list):
            flat[name] = [_said(task) for task in flat[name]]
    return flat


def _said(task: object) -> object:
    """A task without what it leaves at its default."""
    if not isinstance(task, Mapping):
        return task
    usual = TaskConfig().model_dump(mode="json")
    return {name: value for name, value in task.items() if name == "source" or usual.get(name) != value}


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
