"""``pacedrl train``."""

import argparse
import sys

from pacedrl.cli.arguments import add_config, add_overrides
from pacedrl.errors import EXIT_INTERRUPTED, EXIT_STOPPED

HELP = "post-train a model; if the run folder holds a checkpoint, resume from it"
EXAMPLE = "examples/demo.yaml run.steps=20 run.dir=runs/short"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """Train and print a summary: exit code 0, EXIT_STOPPED, or EXIT_INTERRUPTED after Ctrl-C."""
    from pacedrl.config import load_config

    config = load_config(options.config, options.overrides)  # before the slow imports, to report errors at once

    from rich.console import Console

    from pacedrl.distributed.ranks import connect
    from pacedrl.evaluation.tables import before_after_table
    from pacedrl.training.trainer import Trainer, TrainingStopped
    from pacedrl.view import ConsoleView

    ranks = connect()
    with ConsoleView(quiet=not ranks.main) as view:
        trainer = Trainer(config, view)
        try:
            summary = trainer.train()
        except TrainingStopped as stopped:
            print(f"pacedrl: {stopped}", file=sys.stderr)
            return EXIT_STOPPED
    console = Console(quiet=not ranks.main)
    if summary.interrupted:
        console.print(f"Stopped after step {summary.step}; the same command resumes it.", highlight=False)
        return EXIT_INTERRUPTED
    if len(summary.evals) > 1:
        tasks = [task.name for task in trainer.eval_tasks]
        console.print(before_after_table(summary.evals, tasks, config.eval.k))
    console.print(
        f"{summary.rollouts:,} rollouts in {summary.step} steps. Run folder: {summary.run_dir}", highlight=False
    )
    return 0
