"""Write a results page, or the guide, from the results beside it: make results-skills.

    python docs/results/build.py skills                      # redraw from docs/results/*.json
    python docs/results/build.py guide                       # docs/guide.md, from the same results
    python docs/results/build.py skills --from runs/results  # first copy the results of finished comparisons

The page is ``NAME.template.md``, here or in docs/, with its placeholders filled in, so that figures in sentences are
never typed by hand:

- ``{section:COMPARISON}``: tables and figures of a comparison
- ``{calibration:COMPARISON/VARIANT/SEED}``: tables and figures of a run's calibration
- ``{mean:COMPARISON/VARIANT/MEASURE}``: mean and interval; ``{ratio:...}``: ratio of the mean to the baseline's. A
  measure is one of ``pacedrl.lab.measures.MEASURES``, ``pass@K``, or ``task NAME``: the task's final pass@1 with its
  range over seeds
- ``{difference:COMPARISON/VARIANT/MEASURE/OTHER}``: a variant minus another one, seed by seed
- ``{error:COMPARISON/VARIANT/SEED/GROUP/ESTIMATOR}``: an estimator's mean error over the checkpoints
- ``{target:COMPARISON}``: the comparison's target accuracy
- ``{estimates:POOL/SUBSET}``: from estimates.json (estimates.py), the table of the estimates of a pool's ``seen`` or
  ``unseen`` prompts
- ``{discounts:RUN/RUN}``, ``{coverages:RUN/RUN}`` and ``{noise:POOL}``: from the same, the table of errors by γ, that
  of errors and coverage at the checkpoints, and the noise of the truth
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pacedrl.intervals import Interval
from pacedrl.lab.calibrate import Calibration, load_calibration
from pacedrl.lab.calibration_page import calibration_section
from pacedrl.lab.page import Times, section
from pacedrl.lab.results import Results, variant_result
from pacedrl.lab.tables import interval_text

HERE = Path(__file__).resolve().parent
KINDS = "section|calibration|mean|ratio|difference|error|target|estimates|discounts|coverages|noise"
PLACEHOLDER = re.compile(rf"\{{({KINDS}):([^{{}}]+)\}}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    templates = {path.name.removesuffix(".template.md"): path for path in sorted(HERE.parent.rglob("*.template.md"))}
    parser.add_argument("name", choices=templates)
    parser.add_argument("--from", dest="runs", type=Path, help="folder with the comparisons")
    options = parser.parse_args()
    source = templates[options.name]
    template = source.read_text(encoding="utf-8")
    if options.runs:
        for measured, kept in dict.fromkeys(
            pair for found in PLACEHOLDER.findall(template) for pair in needed(*found, options.runs)
        ):
            shutil.copyfile(measured, kept)
    source.with_name(f"{options.name}.md").write_text(page(template, HERE), encoding="utf-8")


def page(template: str, figures: Path) -> str:
    """Fill in the template and write its figures into the folder."""
    return PLACEHOLDER.sub(lambda match: fill(match[1], match[2], figures), template)


def fill(kind: str, argument: str, figures: Path) -> str:
    comparison, *rest = argument.split("/")
    match kind:
        case "section":
            return section(*load(comparison), figures, prefix=f"{comparison}_")
        case "calibration":
            return calibration_section(calibration(argument), figures, f"{calibration_name(argument)}_")
        case "error":
            run, group, estimator = argument.rsplit("/", 2)
            scores = [c.scores[group][estimator].mae for c in calibration(run).checkpoints if group in c.scores]
            return f"{sum(scores) / len(scores):.3f}"
        case "estimates":
            return estimates_table(comparison, rest[0])
        case "discounts":
            return discounts_table(argument.split("/"))
        case "coverages":
            return coverages_table(argument.split("/"))
        case "noise":
            first = next(iter(estimates()["fixed"][comparison]["counts"].values()))
            return f"{first['unseen']['noise'][0]:.3f}"
    results, _ = load(comparison)
    if kind == "target":
        return f"{results.target:.3f}"
    variant, measure, *other = rest
    if kind == "difference":
        return interval_text(difference(results, variant, other[0], measure), measure)
    value = interval_of(results, variant, measure)
    if kind == "ratio":
        if measure == "rollouts_to_target":
            return f"{results.cost_ratio(variant):.2f}"
        return f"{value.mean / interval_of(results, results.baseline, measure).mean:.2f}"
    return interval_text(value, measure)


def estimates() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / "estimates.json").read_text(encoding="utf-8"))
    return found


def estimates_table(pool: str, subset: str) -> str:
    """Return a table with a row for each estimator and a column for each number of observed prompts."""
    found = estimates()["fixed"][pool]
    points = list(next(iter(found.values())))
    lines = ["| observed prompts | " + " | ".join(points) + " |", "|---" * (len(points) + 1) + "|"]
    for name, by_point in found.items():
        cells = (estimate_cell(by_point[point][subset]) for point in points)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def estimate_cell(scores: dict[str, list[float | None]]) -> str:
    """Return error ± deviation over streams, rank correlation, and the coverage of 50% and 90% intervals."""
    error, rank = scores["mae"], scores["rank"][0]
    parts = [f"{error[0]:.3f} ± {error[1]:.3f}", "" if rank is None else f"{rank:.2f}"]
    if "in_50" in scores:
        parts.append(f"{100 * scores['in_50'][0]:.0f}, {100 * scores['in_90'][0]:.0f}")
    return " / ".join(part for part in parts if part)


def discounts_table(runs: list[str]) -> str:
    """Return a table with a row for each γ: mean error, and squared error less sampling noise, of each run."""
    moving = estimates()["moving"]
    lines = runs_heading("γ", runs)
    for discount in moving[runs[0]]:
        cells = (f"{moving[run][discount]['mae']:.4f} / {moving[run][discount]['square']:.4f}" for run in runs)
        lines.append(f"| {discount} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def coverages_table(runs: list[str]) -> str:
    """Return a table with a row for each estimator and subset: error, and coverage of 50% and 90% intervals, by run."""
    found = estimates()["checkpoints"]
    lines = runs_heading("estimator, prompts", runs)
    for name in found[runs[0]]:
        for subset, words in (("seen", "seen"), ("unseen", "not seen")):
            scores = [found[run][name][subset] for run in runs]
            cells = (f"{s['mae']:.3f} / {100 * s['in_50']:.0f}, {100 * s['in_90']:.0f}" for s in scores)
            lines.append(f"| {name}, {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_heading(corner: str, runs: list[str]) -> list[str]:
    """Return the first lines of a table with a column for each run."""
    names = [run.removeprefix("moving_") for run in runs]
    return [f"| {corner} | " + " | ".join(names) + " |", "|---" * (len(runs) + 1) + "|"]


def difference(results: Results, variant: str, other: str, measure: str) -> Interval:
    own, base = results.variants[variant].runs, results.variants[other].runs
    value = variant_result([], own, {}, base, results.target, results.rollouts).versus_baseline[measure]
    if value is None:
        raise SystemExit(f"{variant} and {other} have no {measure} in common")
    return value


def interval_of(results: Results, variant: str, measure: str) -> Interval:
    found = results.variants[variant]
    if measure.startswith("pass@"):
        return found.pass_at_k[int(measure.removeprefix("pass@"))]
    if measure.startswith("task "):
        ends = [run.curve.tasks[measure.removeprefix("task ")][-1] for run in found.runs.values()]
        return Interval(mean=sum(ends) / len(ends), low=min(ends), high=max(ends))
    value = found.summary[measure]
    if value is None:
        raise SystemExit(f"{variant} has no {measure}")
    return value


def load(comparison: str) -> tuple[Results, Times]:
    times = json.loads((HERE / f"{comparison}.times.json").read_text(encoding="utf-8"))
    by_seed = {name: {int(seed): seconds for seed, seconds in runs.items()} for name, runs in times.items()}
    return Results.load(HERE / f"{comparison}.json"), by_seed


def calibration(argument: str) -> Calibration:
    return load_calibration(HERE / f"{calibration_name(argument)}.json")


def calibration_name(argument: str) -> str:
    comparison, variant, seed = argument.split("/")
    return f"{comparison}_{variant}_seed{seed}"


def needed(kind: str, argument: str, runs: Path) -> list[tuple[Path, Path]]:
    """Return the results that a placeholder reads, as pairs of the comparison's file and its copy here."""
    comparison, *rest = argument.split("/")
    if kind in ("estimates", "discounts", "coverages", "noise"):
        return []  # estimates.py writes its results here
    if kind in ("calibration", "error"):
        variant, seed = rest[:2]
        source = runs / comparison / "runs" / variant / f"seed{seed}" / "calibration.json"
        return [(source, HERE / f"{calibration_name(f'{comparison}/{variant}/{seed}')}.json")]
    return [
        (runs / comparison / "results.json", HERE / f"{comparison}.json"),
        (runs / comparison / "times.json", HERE / f"{comparison}.times.json"),
    ]


if __name__ == "__main__":
    main()
