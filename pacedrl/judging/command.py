"""The verb ``judge``: from the command line's options to verdicts and what they amount to."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

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
"""Jobs a process between two steps of the progress bar."""
COLUMNS = ("prompt", "answer", "completion")


def judge(options: argparse.Namespace) -> int:
    """Judge every row of a file through the pool, as in training; 0 when all rows have a verdict, errors among them.

    Raises InputError.
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
    with _output(options.out, options.file) as write, VerifierPool(workers, timeout_s, defaults.memory_mib) as pool:
        pool.start()
        start = time.monotonic()
        try:
            for candidate, verdict in zip(candidates, _verdicts(pool, jobs, BATCH * workers), strict=True):
                judged.append(Judged(len(judged) + 1, candidate, verdict))
                write(judged[-1])
        except KeyboardInterrupt:
            print(f"pacedrl: stopped after {len(judged):,} of {len(jobs):,} rows", file=sys.stderr)
            raise
        seconds = time.monotonic() - start
    console, refusal = Console(stderr=options.out == "-"), _refusal(judged, options.verifier)
    print_summary(console, judged, options.verifier, seconds, refusal)
    return 0


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
        path = Path(out).expanduser()
        if path.exists() and path.samefile(source.expanduser()):
            raise InputError(f"--out: '{path}' is the file that is judged; give another one")
        try:
            with path.open("w", buffering=1, encoding="utf-8") as file:  # whole lines, however this ends
                yield lambda one: print(_line(one), file=file)
        except OSError as error:
            raise InputError(f"--out: cannot write '{path}' ({error.strerror}); choose another file") from None


def _line(one: Judged) -> str:
    return json.dumps({"row": one.row, "reward": one.verdict.reward, "error": one.verdict.error})


def _source(path: Path) -> str:
    """The file as a task's source that cannot be taken for a dataset on the hub."""
    path = path.expanduser()
    return str(path) if path.is_absolute() else f"./{path}"


def _pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """From ``key=value`` texts, the values read as YAML as those of overrides are."""
    pairs: dict[str, Any] = {}
    for text in texts:
        if not text.partition("=")[0] or "=" not in text:
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
