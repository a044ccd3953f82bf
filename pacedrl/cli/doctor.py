"""``pacedrl doctor``."""

import argparse

from pacedrl.cli.arguments import add_config, add_overrides
from pacedrl.errors import EXIT_BAD_INPUT

HELP = "check model, chat template, data, verifier and memory before a run"
EXAMPLE = "examples/demo.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """Print the result of each check: exit code 0, or EXIT_BAD_INPUT if one failed."""
    from pacedrl.config import load_config

    config = load_config(options.config, options.overrides)  # before the slow imports, to report errors at once

    from pacedrl.doctor import examine

    return EXIT_BAD_INPUT if examine(config) else 0
