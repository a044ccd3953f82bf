"""Settings of runs as a page lists them: those that differ from the recipe, or between runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pacedrl.config import TaskConfig, dump_config, parse_config
from pacedrl.report.run import RunLogs

LONGEST = 200
"""Maximum number of characters of a value that are shown."""


def changed_settings(run: RunLogs) -> dict[str, list[str]]:
    """Return the settings that differ from the recipe: the run's value, by dotted name; of each task, what it sets.

    Raises InputError if this version does not know the recipe.
    """
    recipe = run.config["recipe"]
    usual = _flat(dump_config(parse_config({"recipe": recipe}, str(run.folder / "config.yaml"))))
    own = _flat(run.config)
    return {name: [_shown(value)] for name, value in own.items() if name not in usual or usual[name] != value}


def settings_between(runs: Sequence[RunLogs]) -> dict[str, list[str]]:
    """Return the settings that are not the same in all runs: each run's value, by dotted name."""
    flat = [_flat(run.config) for run in runs]
    names = {name: None for settings in flat for name in settings}
    values = {name: [_shown(settings.get(name, "—")) for settings in flat] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings but the run's folder and the versions of packages, by dotted name."""
    flat: dict[str, Any] = {}
    for section, values in config.items():
        if section == "versions":
            continue
        for name, value in values.items() if isinstance(values, Mapping) else [(None, values)]:
            flat[section if name is None else f"{section}.{name}"] = value
    flat.pop("run.dir", None)
    for name in ("data.train", "data.eval"):
        if isinstance(flat.get(name), list):
            flat[name] = [_without_defaults(task) for task in flat[name]]
    return flat


def _without_defaults(task: object) -> object:
    if not isinstance(task, Mapping):
        return task
    usual = TaskConfig().model_dump(mode="json")
    return {name: value for name, value in task.items() if name == "source" or usual.get(name) != value}


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
