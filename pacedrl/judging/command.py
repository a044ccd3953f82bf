"""``pacedrl judge``: judges the completions in a file."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import track

from pacedrl.config import TaskConfig, apply_override
from pacedrl.config.sections import VerifierConfig
from pacedrl.errors import InputError
from pacedrl.judging.candidates import TASK, read_candidates
from pacedrl.judging.summary import Judged, print_summary
from pacedrl.rollouts.verdicts import require_judged
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.tasks.verifiers import Verdict, check_spec, require_time
from pacedrl.types import Completion, Group

BATCH = 16
"""Completions that each process judges between two steps of the progress bar."""
COLUMNS = ("prompt", "answer", "completion")


def judge(options: argparse.Namespace) -> int:
    """Judge every row of a file in the verifier processes, as in training, and print a summary.

    Returns the exit code 0, also if verdicts are errors. Raises InputError.
    """
    defaults = VerifierConfig()
    workers = _positive("--workers", options.workers, defaults.workers)
    timeout_s = _positive("--timeout-s", options.timeout_s, defaults.timeout_s)
    verifier_options: dict[str, Any] = _pairs("--option", options.option)
    check_spec(options.verifier, verifier_options)
    require_time(options.verifier, verifier_options, timeout_s, "--timeout-s", options.file.name)
    columns = _columns(options.columns)
    completion = columns.pop("completion", None)
    limit = _positive("--limit", options.limit, None)
    source = TaskConfig.model_validate({"source": _source(options.file), "columns": columns, "limit": limit})
    candidates = read_candidates(source, options.verifier, completion)
    jobs = [Job(options.verifier, one.prompt, one.text, verifier_options) for one in candidates]
    judged: list[Judged] = []
    with _output(options.out, options.file) as file, VerifierPool(workers, timeout_s, defaults.memory_mib) as pool:
        pool.start()
        start = time.monotonic()
        try:
            for candidate, verdict in zip(candidates, _verdicts(pool, jobs, BATCH * workers), strict=True):
                judged.append(Judged(len(judged) + 1, candidate, verdict))
                if file is not None:
                    print(json.dumps({"row": len(judged), **asdict(verdict)}), file=file)
        except KeyboardInterrupt:
            print(f"pacedrl: stopped after {len(judged):,} of {len(jobs):,} rows", file=sys.stderr)
            raise
        seconds = time.monotonic() - start
    refusal = _refusal(judged, options.verifier)
    print_summary(Console(stderr=options.out == "-"), judged, options.verifier, seconds, refusal)
    return 0


def _refusal(judged: Sequence[Judged], verifier: str) -> str | None:
    """Return why training would refuse a verifier that gives these verdicts, or None if it would not."""
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
    """Yield all verdicts in order and show a progress bar."""
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
    path = Path(out).expanduser()
    if path.exists() and path.samefile(source.expanduser()):
        raise InputError(f"--out: '{path}' is the file that is judged; give another one")
    try:
        with path.open("w", buffering=1, encoding="utf-8") as file:  # an interrupt leaves whole lines
            yield file
    except OSError as error:
        raise InputError(f"--out: cannot write '{path}' ({error.strerror}); choose another file") from None


def _source(path: Path) -> str:
    """Return the path in a form that no task takes for the name of a dataset on the hub."""
    path = path.expanduser()
    return str(path) if path.is_absolute() else f"./{path}"


def _pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` texts; the values are YAML, as in configuration overrides."""
    pairs: dict[str, Any] = {}
    for text in texts:
        if text.find("=") < 1:
            raise InputError(f"{option}: expected key=value, got '{text}'")
        apply_override(pairs, text)
    return pairs


def _columns(texts: Sequence[str]) -> dict[str, str]:
    columns = {}
    for text in texts:
        key, _, name = text.partition("=")
        if key not in COLUMNS or not name:
            raise InputError(f"--columns: expected prompt=NAME, answer=NAME or completion=NAME, got '{text}'")
        columns[key] = name
    return columns


def _positive(option: str, value: Any, default: Any) -> Any:
    if value is None:
        return default
    if not value > 0:
        raise InputError(f"{option}: expected more than 0, got {value:g}")
    return value
