"""``pacedrl judge``."""

import argparse
from collections.abc import Sequence
from typing import Any

from pacedrl.cli.arguments import home_path, positive
from pacedrl.errors import InputError
from pacedrl.paths import expand_home

HELP = "try a verifier on completions from a file, judged as in training"
EXAMPLE = "completions.jsonl --verifier math --option percent=value --out -"
COLUMNS = ("prompt", "answer", "completion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=home_path, metavar="FILE", help=".jsonl, .json, .csv or .parquet file with one completion per row")
    verifier = "a built-in verifier, FILE.py:function or module:function"
    add("--verifier", type=expand_home, required=True, metavar="NAME", help=verifier)
    add("--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="option of the built-in verifier")
    columns = "column of the prompt, the answer or the completion, if it is not found"
    add("--columns", nargs="+", action="extend", default=[], metavar="KEY=NAME", help=columns)
    out = "write row, reward and error as JSONL ('-': to standard output)"
    add("--out", type=expand_home, metavar="VERDICTS", help=out)
    add("--workers", type=int, default=2, help="completions judged at the same time (default: %(default)s)")
    add("--timeout-s", type=float, default=10, help="seconds for judging one completion (default: %(default)s)")
    add("--limit", type=int, help="judge only this many rows, in file order")


def run(options: argparse.Namespace) -> int:
    """Judge the completions and print a summary. Verdicts that are errors do not change the exit code."""
    from pacedrl.config import TaskConfig
    from pacedrl.config.sections import VerifierConfig
    from pacedrl.judging.judge import judge
    from pacedrl.tasks.verifiers import require_time, resolve

    workers, timeout_s = positive("--workers", options.workers), positive("--timeout-s", options.timeout_s)
    limit = None if options.limit is None else positive("--limit", options.limit)
    verifier_options = _verifier_options(options.option)
    resolve(options.verifier, verifier_options)
    require_time(options.verifier, verifier_options, timeout_s, "--timeout-s", options.file.name)
    columns = _columns(options.columns)
    completion = columns.pop("completion", None)
    # The "./" keeps the file from being taken for a hub dataset.
    source = str(options.file) if options.file.is_absolute() else f"./{options.file}"
    settings = {"source": source, "columns": columns, "limit": limit, "verifier": options.verifier}
    task = TaskConfig.model_validate(settings | {"verifier_options": verifier_options})
    judge(task, completion, VerifierConfig(workers=workers, timeout_s=timeout_s), options.out)
    return 0


def _verifier_options(texts: Sequence[str]) -> dict[str, Any]:
    """The options in ``key=value`` texts, whose values are parsed as YAML like those of overrides."""
    from pacedrl.config import apply_override

    options: dict[str, Any] = {}
    for text in texts:
        if text.startswith("=") or "=" not in text:
            raise InputError(f"--option: expected key=value, got '{text}'")
        apply_override(options, text)
    return options


def _columns(texts: Sequence[str]) -> dict[str, str]:
    columns = {}
    for text in texts:
        key, _, name = text.partition("=")
        if key not in COLUMNS or not name:
            raise InputError(f"--columns: expected prompt=NAME, answer=NAME or completion=NAME, got '{text}'")
        columns[key] = name
    return columns
