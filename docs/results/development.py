"""Write development.json from the comparisons on the development pools, and print its tables.

    python docs/results/development.py FOLDER ...    # each holds comparisons on the pools skewed, even or wide
    python docs/results/development.py               # print the tables of development.json again

Variants that differ in nothing but the learning rate are one candidate, whose name is theirs without the rate at the
end (``grpo 2e-4``). A candidate is judged at one rate on all pools: that of the highest pass@1 over training, mean over
the pools and seeds that all of its rates have.
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
    print(tables(json.loads(KEPT.read_text(encoding="utf-8"))))


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


def tables(rows: list[Row]) -> str:
    """Return a Markdown table for each pool, with the candidates at the rates at which they are judged.

    The highest pass@1 over training comes first. Each cell is a mean over seeds, followed by a comparison over the
    seeds that both have: pass@1 over training minus the oracle's, completions to the target relative to the oracle's,
    and the final figures minus those of grpo.
    """
    judged = {name: at_best_rate(own) for name, own in grouped(rows, "candidate").items()}
    return "\n\n".join(
        pool_table(pool, {name: own for name, runs in judged.items() if (own := grouped(runs, "pool")[pool])})
        for pool in TARGETS
    )


def pool_table(pool: str, runs: dict[str, list[Row]]) -> str:
    """Return the table of one pool, given each candidate's runs on it."""
    header = f"| {pool} | rate | seeds | over training | completions to {TARGETS[pool]} | final | copy |"
    lines = [header, "|---|---|---|---|---|---|---|"]
    for name, own in sorted(runs.items(), key=lambda item: -area(item[1])):
        cells = (
            difference(own, runs.get("oracle", []), "area"),
            ratio(own, runs.get("oracle", []), "to_target"),
            difference(own, runs.get("grpo", []), "final"),
            difference(own, runs.get("grpo", []), "copy"),
        )
        lines.append(f"| {name} | {own[0]['rate']:g} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference(own: list[Row], base: list[Row], measure: str) -> str:
    """Return the mean of a measure, and the mean difference to the reference over the seeds of both."""
    pairs = by_shared_seed(own, base, measure)
    return f"{mean(row[measure] for row in own):.3f}" + (f" ({mean(a - b for a, b in pairs):+.3f})" if pairs else "")


def ratio(own: list[Row], base: list[Row], measure: str) -> str:
    """Return the mean of a measure, and its ratio to the reference's over the seeds of both."""
    pairs = by_shared_seed(own, base, measure)
    relative = f" (×{sum(a for a, _ in pairs) / sum(b for _, b in pairs):.2f})" if pairs else ""
    return f"{mean(row[measure] for row in own):,.0f}{relative}"


def by_shared_seed(own: list[Row], base: list[Row], measure: str) -> list[tuple[float, float]]:
    return [(row[measure], other[measure]) for row in own for other in base if row["seed"] == other["seed"]]


def at_best_rate(rows: list[Row]) -> list[Row]:
    """Return a candidate's runs at the rate at which it is judged."""
    by_rate = grouped(rows, "rate")
    shared = set.intersection(*({(row["pool"], row["seed"]) for row in own} for own in by_rate.values()))

    def compared(own: list[Row]) -> float:
        return area([row for row in own if (row["pool"], row["seed"]) in shared])

    return max(by_rate.values(), key=compared)


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
