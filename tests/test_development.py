"""The table of the development comparisons: the rate at which a candidate is judged, and what it is compared with."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

DEVELOPMENT = runpy.run_path(str(Path(__file__).resolve().parents[1] / "docs/results/development.py"))


def run(candidate: str, rate: float, seed: int, area: float, pool: str = "skewed", **measures: float) -> dict[str, Any]:
    measures = {"to_target": 2560.0, "final": 0.9, "copy": 0.8} | measures
    return {"pool": pool, "candidate": candidate, "rate": rate, "seed": seed, "area": area} | measures


def cells(rows: list[dict[str, Any]], candidate: str, pool: str = "skewed") -> list[str]:
    lines = DEVELOPMENT["tables"](rows).split(f"| {pool} |")[1].split("\n\n")[0].splitlines()
    line = next(line for line in lines if line.startswith(f"| {candidate} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_candidate_is_judged_at_one_rate_for_all_pools() -> None:
    low = [run("grpo", 2e-4, 300, 0.7), run("grpo", 2e-4, 300, 0.8, pool="even")]
    high = [run("grpo", 4e-4, 300, 0.6), run("grpo", 4e-4, 300, 0.95, pool="even")]
    assert cells(low + high, "grpo")[1:4] == ["0.0004", "1", "0.600"]
    assert cells(low + high, "grpo", "even")[1:4] == ["0.0004", "1", "0.950"]


def test_rates_are_compared_on_the_pools_and_seeds_that_all_of_them_have() -> None:
    low = [run("grpo", 2e-4, 300, 0.7), run("grpo", 2e-4, 301, 0.9)]
    high = [run("grpo", 4e-4, 300, 0.8), run("grpo", 4e-4, 300, 0.4, pool="even")]
    assert cells(low + high, "grpo")[1:4] == ["0.0004", "1", "0.800"]
    assert cells(low + high, "grpo", "even")[1:4] == ["0.0004", "1", "0.400"]


def test_differences_are_over_the_seeds_of_both() -> None:
    oracle = [run("oracle", 4e-4, 300, 0.85, to_target=2000.0)]
    grpo = [run("grpo", 4e-4, 300, 0.7, final=0.88, copy=0.85)]
    plus = [run("plus", 4e-4, 300, 0.84, to_target=2500.0), run("plus", 4e-4, 301, 0.80, to_target=3500.0)]
    found = cells(oracle + grpo + plus, "plus")
    assert found[3:] == ["0.820 (-0.010)", "3,000 (×1.25)", "0.900 (+0.020)", "0.800 (-0.050)"]


def test_the_best_candidate_of_a_pool_comes_first() -> None:
    rows = [run("grpo", 4e-4, 300, 0.7), run("plus", 4e-4, 300, 0.9), run("paced", 4e-4, 300, 0.8, pool="even")]
    names = [line.split("|")[1].strip() for line in DEVELOPMENT["tables"](rows).splitlines() if line]
    assert [name for name in names if not name.startswith("--")] == ["skewed", "plus", "grpo", "even", "paced", "wide"]


def test_the_outcome_states_what_the_runs_give() -> None:
    """The differences to the oracle at its own rate and at that of `paced_plus`, over the seeds of both."""
    runs = json.loads(Path(DEVELOPMENT["KEPT"]).read_text())
    page = Path(DEVELOPMENT["KEPT"]).with_suffix(".md").read_text().replace("\u2212", "-")

    def row(rate: float, measure: str, compare: str) -> list[str]:
        found = []
        for pool in DEVELOPMENT["TARGETS"]:
            own, base = (
                [run for run in runs if (run["pool"], run["candidate"], run["rate"]) == (pool, name, at)]
                for name, at in (("paced_plus", 4e-4), ("oracle", rate))
            )
            found.append(DEVELOPMENT[compare](own, base, measure).split("(")[1].strip("×)"))
        return found

    shown = [
        [re.sub(r" \(.*", "", cell.strip()) for cell in line.strip("|").split("|")[1:]]
        for line in page.splitlines()
        if line.startswith(
            ("| pass@1 over training minus the", "| the same against", "| completions to the target rel")
        )
    ]
    expected = [row(rate, *what) for what in (("area", "difference"), ("to_target", "ratio")) for rate in (8e-4, 4e-4)]
    assert shown == expected
