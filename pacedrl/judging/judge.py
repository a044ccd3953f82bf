"""Judge the completions in a file with a verifier, as in training."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import track

from pacedrl.config import TaskConfig
from pacedrl.config.sections import VerifierConfig
from pacedrl.errors import InputError
from pacedrl.judging.candidates import TASK, Candidate, read_candidates
from pacedrl.judging.summary import print_summary
from pacedrl.rollouts.verdicts import require_judged
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict
from pacedrl.types import Group

BATCH = 16
"""Completions that each process judges between two steps of the progress bar."""


def judge(config: TaskConfig, completion: str | None, processes: VerifierConfig, out: str | None) -> None:
    """Judge every row of ``config.source`` in the verifier processes, as in training, and print a summary.

    ``completion`` is the column of the completions; if None, it is guessed. Verdicts are written as JSON lines to the
    file ``out``, or to standard output if it is '-'. Raises InputError.
    """
    verifier, source = str(config.verifier), Path(str(config.source))
    candidates = read_candidates(config, verifier, completion)
    jobs = [Job(verifier, one.prompt, one.completion.text, config.verifier_options) for one in candidates]
    done = 0
    with (
        _output(out, source) as file,
        VerifierPool(processes.workers, processes.timeout_s, processes.memory_mib) as pool,
    ):
        pool.start()
        start = time.monotonic()
        try:
            for one, verdict in zip(candidates, _verdicts(pool, jobs, BATCH * processes.workers), strict=True):
                one.completion.reward, one.completion.error = verdict.reward, verdict.error
                done = one.row
                if file is not None:
                    print(json.dumps({"row": one.row, **asdict(verdict)}), file=file)
        except KeyboardInterrupt:
            print(f"pacedrl: stopped after {done:,} of {len(jobs):,} rows", file=sys.stderr)
            raise
        seconds = time.monotonic() - start
    print_summary(Console(stderr=out == "-"), candidates, verifier, seconds, _refusal(candidates, verifier))


def _refusal(judged: Sequence[Candidate], verifier: str) -> str | None:
    """Return why training would refuse a verifier that gives these verdicts, or None if it would not."""
    try:
        require_judged([Group(one.prompt, [one.completion]) for one in judged], {TASK: Task(TASK, [], verifier)})
    except InputError as error:
        return str(error)
    return None


def _verdicts(pool: VerifierPool, jobs: Sequence[Job], batch: int) -> Iterator[Verdict]:
    console = Console(stderr=True)
    batches = [jobs[begin : begin + batch] for begin in range(0, len(jobs), batch)]
    for part in track(batches, "judging", console=console, disable=not console.is_terminal):
        yield from pool.score(part)


@contextmanager
def _output(out: str | None, source: Path) -> Iterator[TextIO | None]:
    """Yield the file that verdicts are written to: ``out``, standard output for '-', or None."""
    if out is None or out == "-":
        yield sys.stdout if out else None
        return
    path = Path(out)
    if path.exists() and path.samefile(source):
        raise InputError(f"--out: '{path}' is the file that is judged; give another one")
    try:
        with path.open("w", buffering=1, encoding="utf-8") as file:  # an interrupt leaves whole lines
            yield file
    except OSError as error:
        raise InputError(f"--out: cannot write '{path}' ({error.strerror}); choose another file") from None
