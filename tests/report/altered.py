"""The tiny run's configuration, and logs of a real run with something changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pacedrl.report.run import RunLogs


def tiny(folder: Path, **sections: Any) -> dict[str, Any]:
    """Twelve quick steps; ``sections`` replace single settings, or whole sections that are no dict."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder), "steps": 12, "device": "cpu"},
        "data": {
            "train": [{"source": "skills", "options": {"size": 128}}],
            "eval": [
                {"source": "skills", "name": name, "split": "test", "options": {"skills": [name], "size": 12}}
                for name in ("reverse", "sort")
            ],
        },
        "sampling": {"prompts_per_step": 8, "group_size": 8, "max_prompt_tokens": 64, "max_new_tokens": 16},
        "optimizer": {"learning_rate": 2e-4},
        "replay": {"capacity": 8, "admit": 4},
        "verifier": {"workers": 1},
        "eval": {"every": 4, "samples": 4, "k": [1, 4]},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return tree


def grown(run: RunLogs, steps: int) -> RunLogs:
    """The run's rows, repeated and renumbered up to this number of steps, with evaluations spread over them."""

    def again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        last = rows[-1]["step"]
        return [
            row | {"step": row["step"] + turn * last}
            for turn in range(-(-steps // last))
            for row in rows
            if row["step"] + turn * last <= steps
        ]

    metrics, groups, samples = again(run.metrics), again(run.groups), again(run.samples)
    trained = [row["rollouts/trained"] for row in run.metrics]
    metrics = [
        row | {"rollouts/generated": 64 * row["step"], "rollouts/trained": trained[0] * row["step"]} for row in metrics
    ]
    last = run.metrics[-1]["step"]
    evals = [row | {"step": row["step"] * steps // last} for row in run.evals]
    evals = [row | {"rollouts/generated": 64 * row["step"]} for row in evals]
    return replace(run, metrics=metrics, evals=evals, groups=groups, samples=samples)


def altered(run: RunLogs, change: Mapping[str, Any], since: int = 1) -> RunLogs:
    """The run with fields of its metrics replaced from a step on."""
    return replace(run, metrics=[row | (change if row["step"] >= since else {}) for row in run.metrics])


def held_out(run: RunLogs, task: str, *values: float, half: float = 0.01) -> RunLogs:
    """The run with one task's pass@1 and its interval replaced, one value per evaluation."""
    name = f"{task}/pass@1"
    rows = [
        row | {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
        for row, value in zip(run.evals, values, strict=True)
    ]
    return replace(run, evals=rows)


def with_groups(run: RunLogs, change: Callable[[dict[str, Any]], dict[str, Any]]) -> RunLogs:
    """The run with the rows of groups.jsonl changed."""
    return replace(run, groups=[row | change(row) for row in run.groups])


def noisy(run: RunLogs, seed: int = 0) -> RunLogs:
    """The run with every number of its metrics multiplied by about 1, so that repeated rows differ."""
    rng = random.Random(seed)
    rows = [
        {
            name: value * rng.uniform(0.8, 1.2) if isinstance(value, float) and name != "rollouts/age" else value
            for name, value in row.items()
        }
        for row in run.metrics
    ]
    return replace(run, metrics=rows)


def written(run: RunLogs, folder: Path) -> Path:
    """Write the run's logs into a folder and return it."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(run.config))
    logs = {"metrics": run.metrics, "eval": run.evals, "groups": run.groups, "samples": run.samples}
    for name, rows in logs.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
