"""Runs what is left of a comparison: several processes at a time, spread over the GPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from pacedrl.lab.plan import Plan, Run
from pacedrl.lab.run_process import SERVER_KILLED, interrupt, run_process
from pacedrl.lab.worker import train_and_evaluate

UPDATE_S = 0.3
"""Seconds between two calls of ``update``."""


@dataclass
class RunQueue:
    """The runs of a comparison by state."""

    waiting: list[Run]
    finished: list[Run]
    running: dict[ForkServerProcess, tuple[Run, int]] = field(default_factory=dict)
    """Process → its run and its slot, a number below ``jobs``."""
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """(variant, seed) → the reason: the last line of the run's log."""


def run_all(
    plan: Plan,
    jobs: int,
    update: Callable[[RunQueue], None],
    ended: Callable[[Run, str | None], None],
) -> dict[tuple[str, int], str]:
    """Run what is not finished, ``jobs`` runs at a time, and return the failures as in `RunQueue`.

    Runs that failed or were cut off before resume from their last checkpoint. ``ended`` is called with each run that
    ends and the reason for its failure, if it failed. KeyboardInterrupt passes once the runs have saved their state.
    """
    runs = plan.runs()
    queue = RunQueue([run for run in runs if not run.finished], [run for run in runs if run.finished])
    slots = list(range(jobs))
    with _environment(jobs):
        try:
            while queue.waiting or queue.running:
                while queue.waiting and slots:
                    _start(plan, queue, slots.pop(0))
                update(queue)
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
                        queue.failed[run.variant, run.seed] = failure
                    ended(run, failure)
        finally:
            interrupt(queue.running)
    return queue.failed


def default_jobs() -> int:
    """The number of GPUs, or of CPU cores where there is none."""
    return torch.cuda.device_count() or _cores()


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(plan: Plan, queue: RunQueue, slot: int) -> None:
    run = queue.waiting.pop(0)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    run.log.write_bytes(b"")  # a process that fails before it opens its log leaves none of an earlier run
    arguments = (plan.config_path, plan.final_k, run.overrides)
    process = run_process(train_and_evaluate, arguments, run.log, _device(slot))
    queue.running[process] = (run, slot)  # before it starts, so that a Ctrl-C in between interrupts it
    process.start()


@contextmanager
def _environment(jobs: int) -> Iterator[None]:
    """Set in this process what the fork server's imports read."""
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
    """The variable that gives the runs of a slot their GPU."""
    gpus = torch.cuda.device_count()
    if not gpus:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": visible[slot % gpus]}


def _failure(log: Path, code: int) -> str | None:
    """Why a run failed; None if it did not."""
    if code == 0:
        return None
    if code < 0:
        return f"killed by signal {-code} ({signal.strsignal(-code)})"
    if code == SERVER_KILLED:
        return "the process that forks the runs was killed"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("pacedrl: ") if lines else f"exit code {code}, without a message"
