"""Measure how long the page of a long run takes to build, and how large it is.

    python benchmarks/report.py                # 1,000 steps, 100 completions per step: under a minute

A real run of the tiny model is extended: its rows are repeated with slightly different numbers up to the number of
steps, and its completions get random texts of a hundred words, so that they compress no better than real ones.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from pacedrl import Config, Trainer
from pacedrl.report.page import render

SHORT = 20
"""Number of steps that are trained before the logs are extended."""
WORDS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--completions", type=int, default=100, help="completions per step")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        train(folder)
        lengthen(folder, options.steps, options.completions)
        start = time.perf_counter()
        text = render([folder])
        seconds = time.perf_counter() - start
    found = {
        "steps": options.steps,
        "completions": options.steps * options.completions,
        "seconds": seconds,
        "bytes": len(text.encode()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(
        f"{found['steps']:,} steps, {found['completions']:,} completions: {seconds:.1f} s, "
        f"{found['bytes'] / 1e6:.1f} MB, peak {found['peak'] / 2**30:.1f} GiB"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def train(folder: Path) -> None:
    """Train twenty steps of the tiny model with two held-out tasks."""
    skills: dict[str, Any] = {"source": "skills", "split": "test"}
    tree = {
        "run": {"dir": str(folder), "steps": SHORT, "samples_per_step": 32},
        "data": {
            "train": {"source": "skills", "options": {"size": 1024}},
            "eval": [skills | {"name": name, "options": {"skills": [name], "size": 16}} for name in ("copy", "sort")],
        },
        "sampling": {"prompts_per_step": 32, "max_prompt_tokens": 64, "max_new_tokens": 16},
        "optimizer": {"learning_rate": 2e-4},
        "eval": {"every": 5},
    }
    Trainer(Config.model_validate(tree)).train()


def lengthen(folder: Path, steps: int, completions: int) -> None:
    """Rewrite the logs as those of a run of ``steps`` steps."""
    rng = random.Random(0)
    logs = {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in logs}
    samples = logs.pop("samples.jsonl")
    for step in range(1, steps + 1):
        for name, known in logs.items():
            of = [row for row in known if row["step"] == (step - 1) % SHORT + 1]
            rows[name] += [changed(row, step, rng) for row in of]
        for _ in range(completions):
            text = " ".join(f"{rng.choice('bcdfglmnprst')}{rng.randrange(10**4):x}" for _ in range(WORDS))
            rows["samples.jsonl"].append(rng.choice(samples) | {"step": step, "completion": text})
    rows["eval.jsonl"] = [row for row in logs["eval.jsonl"] if row["step"] == 0] + rows["eval.jsonl"]
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in lines))


def changed(row: dict[str, Any], step: int, rng: random.Random) -> dict[str, Any]:
    """Change a row into that of another step: totals are scaled, shares and means get noise."""
    noise = {name: value * rng.uniform(0.9, 1.0) for name, value in row.items() if isinstance(value, float)}
    counted = {
        name: row[name] / row["step"] * step for name in ("rollouts/generated", "tokens/generated") if name in row
    }
    return row | noise | counted | {"step": step}


if __name__ == "__main__":
    main()
