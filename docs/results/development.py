"""Write development.json from the comparisons on the development pools, and print its table.

    python docs/results/development.py FOLDER ...    # each holds comparisons on the pools skewed, even or wide
    python docs/results/development.py               # print the table of development.json again

Variants that differ in nothing but the learning rate are one candidate, whose name is theirs without the rate at the
end (``grpo 2e-4``). A candidate is judged at one rate on all pools: that of the highest pass@1 over training, mean over
pools and seeds, among the rates with the most runs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from pacedrl.lab.measures import RunResult
from pacedrl.lab.results import Results

KEPT = Path(__file__).with_suffix(".json")
TARGETS = {"skewed": 0.77, "even": 0.754, "wide": 0.77}
"""Held-out pass@1 to reach, by pool."""
LAST = 5
"""The final pass@1 is the mean of so many last evaluations, since a single one depends much on the last step."""

Row = dict[str, Any]
"""A run: its pool, candidate, learning rate and seed, with what `measures` returns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders with comparisons")
    folders = parser.parse_args().folders
    if folders:
        found = [(pool, folder / pool / "results.json") for pool in TARGETS for folder in folders]
        rows = [row for pool, path in found if path.exists() for row in pool_rows(pool, Results.load(path))]
        KEPT.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
    print(table(json.loads(KEPT.read_text(encoding="utf-8"))))


def pool_rows(pool: str, results: Results) -> list[Row]:
    """Return a row for each run of a pool's comparison, in the order of variants and seeds."""
    return [
        {"pool": pool, "candidate": name.rpartition(" ")[0], "rate": float(name.rpartition(" ")[2]), "seed": seed}
        | measures(run, TARGETS[pool], results.rollouts)
        for name, found in results.variants.items()
        for seed, run in found.runs.items()
    ]


def measures(run: RunResult, target: float, budget: float) -> dict[str, float | None]:
    """Return pass@1 over training, completions to the target, and the final pass@1 of what counts and of copying."""
    return {
        "area": run.measure("area", target, budget),
        "to_target": run.measure("rollouts_to_target", target, budget),
        "final": mean(run.curve.accuracy[-LAST:]),
        "copy": mean(run.curve.tasks["solved"][-LAST:]),
    }


def table(rows: list[Row]) -> str:
    """Return a Markdown table of the candidates at their rates, the highest pass@1 over training first.

    Each cell is a mean over seeds, followed by a comparison over the seeds that both have: pass@1 over training minus
    the oracle's, completions to the target relative to the oracle's, and the final figures minus those of grpo.
    """
    judged = {name: at_best_rate(own) for name, own in grouped(rows, "candidate").items()}
    lines = [
        "| | rate | seeds | "
        + " | ".join(f"{pool} | to {target} | final | copy" for pool, target in TARGETS.items())
        + " |",
        "|---|---|---|" + "---|" * 4 * len(TARGETS),
    ]
    for name, own in sorted(judged.items(), key=lambda item: -area(item[1])):
        cells = [cell for pool in TARGETS for cell in pool_cells(own, judged, pool)]
        seeds = len({row["seed"] for row in own})
        lines.append(f"| {name} | {own[0]['rate']:g} | {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pool_cells(own: list[Row], judged: dict[str, list[Row]], pool: str) -> list[str]:
    """Return a candidate's four cells of one pool."""
    cells = []
    for measure, reference in (("area", "oracle"), ("to_target", "oracle"), ("final", "grpo"), ("copy", "grpo")):
        value, base = (by_seed(part, pool, measure) for part in (own, judged.get(reference, [])))
        shared = value.keys() & base.keys()
        if not value:
            cells.append("–")
        elif measure == "to_target":
            ratio = sum(value[seed] for seed in shared) / sum(base[seed] for seed in shared) if shared else None
            cells.append(f"{mean(value.values()):,.0f}" + (f" ×{ratio:.2f}" if ratio else ""))
        else:
            difference = f" {mean(value[seed] - base[seed] for seed in shared):+.3f}" if shared else ""
            cells.append(f"{mean(value.values()):.3f}{difference}")
    return cells


def by_seed(rows: list[Row], pool: str, measure: str) -> dict[int, float]:
    return {row["seed"]: row[measure] for row in rows if row["pool"] == pool}


def at_best_rate(rows: list[Row]) -> list[Row]:
    """Return a candidate's runs at the rate at which it is judged."""
    by_rate = grouped(rows, "rate")
    most = max(map(len, by_rate.values()))
    return max((own for own in by_rate.values() if len(own) == most), key=area)


def area(rows: list[Row]) -> float:
    """Pass@1 over training, mean over pools of the mean over seeds."""
    return mean(mean(float(row["area"]) for row in own) for own in grouped(rows, "pool").values())


def grouped(rows: list[Row], key: str) -> dict[Any, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


if __name__ == "__main__":
    main()
