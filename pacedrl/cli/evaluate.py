"""``pacedrl eval``."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pacedrl.cli.arguments import add_overrides, home_path, whole_numbers
from pacedrl.errors import InputError
from pacedrl.paths import expand_home

if TYPE_CHECKING:
    from pacedrl.config import Config

HELP = "evaluate a model on tasks: pass@k, mean@n and diversity"
EXAMPLE = "tiny sampling.max_new_tokens=16 --tasks skills --k 1,8 --limit 64"
DEFAULT_SAMPLES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=expand_home, metavar="MODEL", help="hub name, folder, checkpoint folder, or 'tiny'")
    tasks = "skills, gym:NAME, a file, a folder, or a hub dataset"
    add("--tasks", nargs="+", type=expand_home, metavar="NAME", help=tasks)
    add("--config", type=home_path, help="configuration with tasks (data.eval) and other settings")
    add("--split", default="test", help="split of hub datasets, folders and built-in skills (default: %(default)s)")
    add("--k", help="values of k for pass@k, e.g. 1,8,32 (default: eval.k)")
    add("--samples", type=int, help="completions per prompt (default: the largest k, at least 8)")
    add("--limit", type=int, help="evaluate only this many prompts of each task, in file order")
    add("--json", type=expand_home, metavar="FILE", help="write the results as JSON ('-': to standard output)")
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate the model and print a table, or JSON."""
    config = eval_config(options)

    from rich.console import Console

    from pacedrl.evaluation.evaluate import run_evaluation
    from pacedrl.evaluation.tables import evaluation_notes, evaluation_table
    from pacedrl.view import ConsoleView

    with ConsoleView() as view:
        results = run_evaluation(config, view)
    text = json.dumps({"model": config.model.name, "results": [asdict(result) for result in results]}, indent=2)
    if options.json == "-":
        print(text)
        return 0
    console = Console()
    console.print(evaluation_table(str(options.model), results))
    for note in evaluation_notes(results):
        console.print(note, markup=False, highlight=False)
    if options.json:
        try:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json: cannot write '{options.json}' ({error.strerror})") from None
    return 0


def eval_config(options: argparse.Namespace) -> Config:
    """The configuration that the arguments describe. Raises InputError for invalid arguments."""
    from pacedrl.config import config_tree, parse_config
    from pacedrl.policy.loading import adapter_base

    # --tasks takes all arguments that follow it; those with "=" are overrides.
    tasks = [text for text in options.tasks or [] if "=" not in text]
    overrides = [*options.overrides, *(text for text in options.tasks or [] if "=" in text)]
    tree: dict[str, Any] = config_tree(options.config, overrides)
    parse_config(tree, str(options.config or "eval"), overrides)
    model, data, settings = (tree.setdefault(section, {}) for section in ("model", "data", "eval"))
    overridden = any(text.startswith("model.gguf_file=") for text in options.overrides)
    if options.model != model.get("name") and not overridden and adapter_base(options.model) is None:
        model.pop("gguf_file", None)  # this file belongs to the model that the configuration names
    model |= {"name": options.model, "lora": None}  # an untrained adapter changes nothing
    if tasks:
        data["eval"] = [{"source": source, "split": options.split} for source in tasks]
    if not data.get("eval"):
        raise InputError("no tasks: name some with --tasks, or give a --config with data.eval")
    if options.limit is not None:
        tasks = data["eval"] if isinstance(data["eval"], list) else [data["eval"]]
        data["eval"] = [{**task, "limit": options.limit} for task in tasks]
    if options.k is not None:
        settings["k"] = whole_numbers("--k", options.k)
        settings["samples"] = max([DEFAULT_SAMPLES, *settings["k"]])
    if options.samples is not None:
        settings["samples"] = options.samples
    return parse_config(tree, "eval")
