"""A comparison from its plan to its page: run what is not finished, collect the results, write them."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path

import torch

from pacedrl.errors import InputError
from pacedrl.intervals import scipy_stats
from pacedrl.lab.measures import RunResult, read_run, seconds_at_evaluations
from pacedrl.lab.page import Times, write_page
from pacedrl.lab.plan import CONFIG, Failures, Plan, RunQueue
from pacedrl.lab.results import Results, default_target, variant_result
from pacedrl.lab.run_process import SERVER_KILLED, interrupt, run_process
from pacedrl.lab.tables import LiveTable
from pacedrl.lab.worker import train_and_evaluate
from pacedrl.paths import replace_text
from pacedrl.report.pages import require_page

RESULTS, TIMES = "results.json", "times.json"
UPDATE_S = 0.3
"""Seconds between two updates of the live table."""


def compare(
    plan: Plan,
    jobs: int | None = None,
    baseline: str | None = None,
    target: float | None = None,
    title: str = "Comparison",
) -> tuple[Results, Path]:
    """Run what is not finished, write results.json, times.json and the page; return the results and the page's path.

    Results include what earlier comparisons finished in the folder; runs that failed or were cut off resume from their
    last checkpoint. ``jobs``: runs at a time, by default one for each GPU or CPU core. ``baseline``: by default grpo if
    it is compared, else the first variant. ``target``: held-out pass@1 to reach, by default 90% of the baseline's gain.

    Raises InputError, and KeyboardInterrupt once the runs have saved their state. As the runs are started by
    multiprocessing, a script calls this below ``if __name__ == "__main__":``.
    """
    require_page("lab")  # both are needed after the runs; report a missing one now
    scipy_stats()
    plan.check()
    whole = plan.with_earlier()
    baseline = baseline or ("grpo" if "grpo" in whole.variants else next(iter(whole.variants)))
    if baseline not in whole.variants:
        raise InputError(f"--baseline: '{baseline}' is not compared; there are {', '.join(whole.variants)}")
    plan.write()
    with plan.locked(), LiveTable(plan) as table:
        failures = _run_all(plan, jobs or torch.cuda.device_count() or _cores(), table)
    results, times = _collect(whole, baseline, target, failures)
    # Six digits are more than floats are accurate to.
    rounded = json.loads(results.model_dump_json(), parse_float=lambda text: float(f"{float(text):.6g}"))
    replace_text(plan.folder / RESULTS, json.dumps(rounded, indent=1) + "\n")
    replace_text(plan.folder / TIMES, json.dumps(times, indent=1) + "\n")
    return results, write_page(plan.folder, results, times, f"{title}: {', '.join(whole.variants)}")


def _run_all(plan: Plan, jobs: int, table: LiveTable) -> Failures:
    queue = RunQueue(plan)
    slots = list(range(jobs))
    with _environment(jobs):
        try:
            while queue.waiting or queue.running:
                while queue.waiting and slots:
                    _start(plan, queue, slots.pop(0))
                table.update(queue)
                wait([process.sentinel for process in queue.running], UPDATE_S)
                for process in list(queue.running):
                    if process.exitcode is None:
                        continue
                    run, slot = queue.running.pop(process)
                    slots.append(slot)
                    failure = _failure(run.log, process.exitcode)
                    process.close()
                    if failure is None:
                        queue.finished.append(run)
                    else:
                        queue.failed[run.variant][run.seed] = failure
                    table.ended(run, failure)
        finally:
            interrupt(queue.running)
    return queue.failed


def _start(plan: Plan, queue: RunQueue, slot: int) -> None:
    run = queue.waiting.pop(0)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.log.write_bytes(b"")  # in case the process fails before it opens its log: an earlier run's must not remain
    arguments = (plan.folder / CONFIG, plan.final_k, run.overrides)
    process = run_process(train_and_evaluate, arguments, run.log, _device(slot))
    queue.running[process] = (run, slot)  # before it starts, so that a Ctrl-C in between interrupts it
    process.start()


def _failure(log: Path, code: int) -> str | None:
    """Say why a run failed; None if it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)})"
    if code == SERVER_KILLED:
        return "the process that forks the runs was killed"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("pacedrl: ") if lines else f"exit code {code}, without a message"


def _cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(jobs: int) -> Iterator[None]:
    """Set the variables that the fork server's imports read."""
    # Without NVML, torch.cuda.is_available() initialises CUDA, which does not survive a fork; imports may call it.
    values = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if not torch.cuda.device_count():  # runs with more threads than cores slow each other down
        values["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(_cores() // jobs, 1)))
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update(before)


def _device(slot: int) -> dict[str, str]:
    """Return the environment variable that assigns a GPU to the runs of a slot."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[slot % gpus]}


def _collect(plan: Plan, baseline: str, target: float | None, failures: Failures) -> tuple[Results, Times]:
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
        reason = next(iter(failures.get(baseline, {}).values()), "none was started")
        raise InputError(
            f"--baseline: no run of {baseline} finished, so there is nothing to compare with ({reason}); the finished "
            "runs of the others are kept: name one of those variants with --baseline"
        )
    target = default_target(list(found[baseline].values())) if target is None else target
    variants = {
        name: variant_result(overrides, found[name], failures.get(name, {}), found[baseline], target, plan.rollouts)
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
