"""A comparison from its plan to its page: run what is not finished, collect the results, write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pacedrl.errors import InputError
from pacedrl.intervals import scipy_stats
from pacedrl.lab.measures import RunResult, read_run, seconds_at_evaluations
from pacedrl.lab.page import Times, write_page
from pacedrl.lab.plan import Plan
from pacedrl.lab.results import Results, default_target, variant_result
from pacedrl.lab.run_queue import default_jobs, run_all
from pacedrl.lab.tables import LiveTable
from pacedrl.report.pages import require_page
from pacedrl.training.run_folder import replace_text

RESULTS, TIMES = "results.json", "times.json"


def compare(
    plan: Plan,
    jobs: int | None = None,
    baseline: str | None = None,
    target: float | None = None,
    title: str = "Comparison",
) -> tuple[Results, Path]:
    """Run what is not finished, write results.json, times.json and the page; return the results and the page's path.

    Results include what earlier comparisons finished in the folder. ``jobs``: runs at a time, by default one for each
    GPU or CPU core. ``baseline``: by default grpo if it is compared, else the first variant. ``target``: held-out
    pass@1 to reach, by default 90% of the baseline's gain. Raises InputError. Because it starts processes by
    multiprocessing, a script calls it below ``if __name__ == "__main__":``.
    """
    require_page()  # before the runs rather than after them
    scipy_stats()
    plan.check()
    whole = plan.with_earlier()
    baseline = baseline or ("grpo" if "grpo" in whole.variants else next(iter(whole.variants)))
    if baseline not in whole.variants:
        raise InputError(f"--baseline: '{baseline}' is not compared; there are {', '.join(whole.variants)}")
    plan.write()
    with plan.locked(), LiveTable(plan) as table:
        failed = run_all(plan, jobs or default_jobs(), table.update, table.ended)
    results, times = collect(whole, baseline, target, failed)
    replace_text(plan.folder / RESULTS, _rounded(results) + "\n")
    replace_text(plan.folder / TIMES, json.dumps(times, indent=1) + "\n")
    return results, write_page(plan.folder, results, times, f"{title}: {', '.join(whole.variants)}")


def collect(
    plan: Plan, baseline: str, target: float | None, failures: Mapping[tuple[str, int], str]
) -> tuple[Results, Times]:
    """Results, and the seconds at each evaluation by variant and seed, which differ each time.

    Raises InputError when no run of the baseline finished.
    """
    found: dict[str, dict[int, RunResult]] = {name: {} for name in plan.variants}
    times: dict[str, dict[int, list[float]]] = {name: {} for name in plan.variants}
    for run in plan.runs():
        if run.finished:
            found[run.variant][run.seed] = read_run(run.folder, plan.counted)
            times[run.variant][run.seed] = seconds_at_evaluations(run.folder)
    if not found[baseline]:
        reason = next((text for (name, _), text in failures.items() if name == baseline), "none was started")
        raise InputError(
            f"--baseline: no run of {baseline} finished, so there is nothing to compare with ({reason}); the finished "
            "runs of the others are kept: name one of those variants with --baseline"
        )
    target = default_target(list(found[baseline].values())) if target is None else target
    variants = {
        name: variant_result(
            overrides,
            found[name],
            {seed: text for (variant, seed), text in failures.items() if variant == name},
            found[baseline],
            target,
            plan.rollouts,
        )
        for name, overrides in plan.variants.items()
    }
    results = Results(
        config=dict(plan.tree),
        rollouts=plan.rollouts,
        seeds=list(plan.seeds),
        baseline=baseline,
        target=target,
        variants=variants,
    )
    return results, times


def _rounded(results: Results) -> str:
    """The results as JSON, floats with six digits."""
    rounded = json.loads(results.model_dump_json(), parse_float=lambda text: float(f"{float(text):.6g}"))
    return json.dumps(rounded, indent=1)
