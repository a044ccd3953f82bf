"""Judge the completions in a file with a verifier, as in training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pacedrl.config import TaskConfig
from pacedrl.config.sections import VerifierConfig
from pacedrl.errors import InputError
from pacedrl.judging.candidates import TASK, read_candidates
from pacedrl.judging.summary import Judged, print_summary
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.scoring import require_judged
from pacedrl.tasks.verifiers import Verdict
from pacedrl.types import Completion, Group

BATCH = 16
"""Jobs a process between two steps of the progress bar."""


def judge(config: TaskConfig, completion: str | None, processes: VerifierConfig, out: str | None) -> None:
    """Judge every row of ``config.source`` in worker processes, as in training, and print a summary.

    ``completion`` is the column of the completions; None: look for it. Verdicts are written as JSON lines to the file
    ``out``, or to standard output if it is '-'. Raises InputError.
    """
    verifier, source = str(config.verifier), Path(str(config.source))
    candidates = read_candidates(config, verifier, completion)
    jobs = [Job(verifier, one.prompt, one.text, config.verifier_options) for one in candidates]
    judged: list[Judged] = []
    with (
        _output(out, source) as write,
        VerifierPool(processes.workers, processes.timeout_s, processes.memory_mib) as pool,
    ):
        pool.start()
        start = time.monotonic()
        try:
            for candidate, verdict in zip(candidates, _verdicts(pool, jobs, BATCH * processes.workers), strict=True):
                judged.append(Judged(len(judged) + 1, candidate, verdict))
                write(judged[-1])
        except KeyboardInterrupt:
            print(f"pacedrl: stopped after {len(judged):,} of {len(jobs):,} rows", file=sys.stderr)
            raise
        seconds = time.monotonic() - start
    print_summary(Console(stderr=out == "-"), judged, verifier, seconds, _refusal(judged, verifier))


def _refusal(judged: Sequence[Judged], verifier: str) -> str | None:
    """Why training would not start with a verifier that gives these verdicts; None if it would."""
    groups = [
        Group(one.candidate.prompt, [], [Completion([], [], "", "stop", one.verdict.reward, one.verdict.error)])
        for one in judged
    ]
    try:
        require_judged(groups, {TASK: Task(TASK, [], verifier)})
    except InputError as error:
        return str(error)
    return None


def _verdicts(pool: VerifierPool, jobs: Sequence[Job], batch: int) -> Iterator[Verdict]:
    """All verdicts in order, while a progress bar shows how many there are."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("judging"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("/"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("judging", total=len(jobs))
        for part in (jobs[begin : begin + batch] for begin in range(0, len(jobs), batch)):
            yield from pool.score(part)
            progress.advance(bar, len(part))


@contextmanager
def _output(out: str | None, source: Path) -> Iterator[Callable[[Judged], None]]:
    """What writes a verdict as a line of JSON: to the file ``out``, to standard output ('-'), or nowhere."""
    if out is None:
        yield lambda _: None
    elif out == "-":
        yield lambda one: print(_line(one))
    else:
        path = Path(out)
        if path.exists() and path.samefile(source):
            raise InputError(f"--out: '{path}' is the file that is judged; give another one")
        try:
            with path.open("w", buffering=1, encoding="utf-8") as file:  # whole lines, however this ends
                yield lambda one: print(_line(one), file=file)
        except OSError as error:
            raise InputError(f"--out: cannot write '{path}' ({error.strerror}); choose another file") from None


def _line(one: Judged) -> str:
    return json.dumps({"row": one.row, "reward": one.verdict.reward, "error": one.verdict.error})
