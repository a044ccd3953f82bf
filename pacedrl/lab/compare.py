"""Runs a comparison: processes queued over the devices, finished runs not repeated, failures kept apart."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from pacedrl.errors import InputError
from pacedrl.lab.forks import Forks
from pacedrl.lab.measures import RunResult, read_run, seconds_at_evaluations
from pacedrl.lab.plan import Plan, Run
from pacedrl.lab.results import Results, default_target, variant_result
from pacedrl.paths import replace_text

POLL_S = 0.3
RESULTS, TIMES = "results.json", "times.json"


@dataclass
class Progress:
    """What a comparison has done so far."""

    waiting: list[Run] = field(default_factory=list)
    running: dict[int, tuple[Run, int]] = field(default_factory=dict)
    """Pid → its run and its slot."""
    finished: list[Run] = field(default_factory=list)
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """(variant, seed) → the last line of what the run said."""


def run_all(
    plan: Plan,
    jobs: int,
    update: Callable[[Progress], None],
    ended: Callable[[Run, str | None], None],
) -> dict[tuple[str, int], str]:
    """Run what is not finished, ``jobs`` at a time; the failures. KeyboardInterrupt passes, once the runs have saved.

    Runs of an earlier call that failed or were cut off go on from their last checkpoint. ``update`` is called a few
    times a second, ``ended`` with each run that ends and why it failed, if it did.
    """
    runs = plan.runs()
    progress = Progress([run for run in runs if not run.finished], finished=[run for run in runs if run.finished])
    if progress.waiting:
        forks = Forks("pacedrl.lab.worker", _environment(jobs))
        try:
            _work(plan, jobs, progress, forks, update, ended)
        finally:
            if progress.running:
                forks.interrupt()
            else:
                forks.kill()
    return progress.failed


def collect(
    plan: Plan, baseline: str, target: float | None, failures: Mapping[tuple[str, int], str]
) -> tuple[Results, dict[str, dict[int, list[float]]]]:
    """All figures, and apart from them seconds at each evaluation, by variant and seed: those differ each time.

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
            f"--baseline: no run of {baseline} finished, so there is nothing to compare with ({reason}); what the "
            "others did is kept: name one of them with --baseline"
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


def write_results(folder: Path, results: Results, times: Mapping[str, Mapping[int, list[float]]]) -> None:
    """results.json and times.json, each whole or not at all."""
    replace_text(folder / RESULTS, _rounded(results) + "\n")
    replace_text(folder / TIMES, json.dumps(times, indent=1) + "\n")


def default_jobs() -> int:
    """A process for each GPU, or each CPU core."""
    return _gpus() or _cores()


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(
    plan: Plan,
    jobs: int,
    progress: Progress,
    forks: Forks,
    update: Callable[[Progress], None],
    ended: Callable[[Run, str | None], None],
) -> None:
    free = list(range(jobs))
    while progress.waiting or progress.running:
        while progress.waiting and free:
            run, slot = progress.waiting.pop(0), free.pop(0)
            progress.running[_start(plan, run, slot, forks)] = (run, slot)
        update(progress)
        time.sleep(POLL_S)
        for pid, code in forks.ended().items():
            run, slot = progress.running.pop(pid)
            free.append(slot)
            failure = None if code == 0 else _reason(run.log, code)
            if failure is None:
                progress.finished.append(run)
            else:
                progress.failed[run.variant, run.seed] = failure
            ended(run, failure)


def _start(plan: Plan, run: Run, slot: int, forks: Forks) -> int:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    return forks.start((plan.config_path, plan.final_k, run.overrides), run.log, _device(slot))


def _environment(jobs: int) -> dict[str, str]:
    """All runs'."""
    # Without NVML, asking whether there is a GPU sets CUDA up, which a fork does not survive: what is imported may ask.
    environment = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    if not _gpus() and "OMP_NUM_THREADS" not in environment:  # more threads than cores would spin on each other's
        environment["OMP_NUM_THREADS"] = str(max(_cores() // jobs, 1))
    return environment


def _device(slot: int) -> dict[str, str]:
    """The GPU of the runs in this slot, to be set before CUDA is."""
    gpus = _gpus()
    if not gpus:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[slot % gpus]}


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _reason(log: Path, code: int) -> str:
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)})"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("pacedrl: ") if lines else "it ended without a word"


def _rounded(results: BaseModel) -> str:
    """As JSON; floats to six digits, which is more than they are good for."""

    def shorten(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        return [shorten(item) for item in value] if isinstance(value, list) else value

    return json.dumps(shorten(results.model_dump(mode="json")), indent=1)
