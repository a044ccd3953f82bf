"""Write a results page out of finished comparisons: make results-skills, make results-words.

    python docs/results/build.py skills runs/results

Copies each comparison's results.json beside the page, redraws its figures, and fills the numbers into the words of
``NAME.template.md``: what a sentence quotes is looked up, never typed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from pathlib import Path
from typing import Any

from pacedrl.lab.calibrate import load_calibration
from pacedrl.lab.calibration_page import calibration_section
from pacedrl.lab.page import section
from pacedrl.lab.results import Results
from pacedrl.lab.statistics import Interval
from pacedrl.lab.view import interval_text

HERE = Path(__file__).resolve().parent
PLACEHOLDER = re.compile(r"\{(\w+):([^{}]+)\}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["skills", "words"])
    parser.add_argument("runs", type=Path, help="folder of the comparisons")
    options = parser.parse_args()
    template = (HERE / f"{options.name}.template.md").read_text(encoding="utf-8")
    page = PLACEHOLDER.sub(lambda match: fill(match[1], match[2], options.runs), template)
    (HERE / f"{options.name}.md").write_text(page, encoding="utf-8")


def fill(kind: str, argument: str, runs: Path) -> str:
    """What a placeholder stands for.

    - ``{section:COMPARISON}``: the tables and figures of a comparison
    - ``{calibration:COMPARISON/runs/VARIANT/seedN}``: those of a run's calibration
    - ``{mean:COMPARISON/VARIANT/MEASURE}``: mean and interval, ``{ratio:...}``: to the baseline's mean
    - ``{error:COMPARISON/runs/VARIANT/seedN/GROUP/ESTIMATOR}``: mean error of an estimator over the checkpoints
    - ``{machine:now}``: what it was built on
    """
    match kind:
        case "section":
            results, times = load(runs / argument)
            copy(runs / argument / "results.json", HERE / f"{argument}.json")
            return section(results, times, HERE, prefix=f"{argument}_")
        case "calibration":
            name = argument.replace("/runs/", "_").replace("/", "_")
            copy(runs / argument / "calibration.json", HERE / f"{name}.json")
            return calibration_section(load_calibration(runs / argument / "calibration.json"), HERE, f"{name}_")
        case "error":
            run, group, estimator = argument.rsplit("/", 2)
            checkpoints = load_calibration(runs / run / "calibration.json").checkpoints
            errors = [c.scores[group][estimator].mae for c in checkpoints if group in c.scores]
            return f"{sum(errors) / len(errors):.3f}"
        case "machine":
            return f"{platform.machine()}, {platform.system()}, CPU only"
    comparison, variant, measure = argument.split("/")
    results, _ = load(runs / comparison)
    value = interval_of(results, variant, measure)
    if kind == "ratio":
        return f"{value.mean / interval_of(results, results.baseline, measure).mean:.2f}"
    if kind == "mean":
        return interval_text(value, measure)
    raise SystemExit(f"unknown placeholder {{{kind}:{argument}}}")


def interval_of(results: Results, variant: str, measure: str) -> Interval:
    """A measure, ``pass@K``, or ``TASK`` pass@1 at the end as the mean over seeds."""
    if measure.startswith("pass@"):
        return results.variants[variant].pass_at_k[int(measure.removeprefix("pass@"))]
    if measure.startswith("task "):
        runs = results.variants[variant].runs.values()
        values = [run.curve.tasks[measure.removeprefix("task ")][-1] for run in runs]
        return Interval(mean=sum(values) / len(values), low=min(values), high=max(values))
    value = results.variants[variant].summary[measure]
    if value is None:
        raise SystemExit(f"{variant} has no {measure}")
    return value


def load(folder: Path) -> tuple[Results, dict[str, dict[int, list[float]]]]:
    times: dict[str, dict[str, Any]] = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    by_seed = {name: {int(seed): seconds for seed, seconds in runs.items()} for name, runs in times.items()}
    return Results.load(folder / "results.json"), by_seed


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


if __name__ == "__main__":
    main()
