"""``pacedrl init``."""

from __future__ import annotations

import argparse
from pathlib import Path

from pacedrl.cli.arguments import home_path
from pacedrl.paths import expand_home

HELP = "inspect a model and a dataset, and write a commented configuration for them"
EXAMPLE = "first.yaml --model tiny --data skills"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    out = "the configuration to write (default: %(default)s)"
    parser.add_argument("out", nargs="?", type=home_path, default=Path("my.yaml"), metavar="OUT.yaml", help=out)
    model = "hub name, folder, or 'tiny' (the default)"
    parser.add_argument("--model", type=expand_home, default="tiny", metavar="NAME", help=model)
    data = "a file, a folder, a hub dataset, gym:NAME, or skills (the default)"
    parser.add_argument("--data", type=expand_home, default="skills", metavar="SOURCE", help=data)
    parser.add_argument("--subset", metavar="NAME", help="configuration of a hub dataset, e.g. main")
    held_out = "source to evaluate on (default: hold out a part of the data)"
    parser.add_argument("--eval", type=expand_home, metavar="SOURCE", help=held_out)
    reward = "a verifier, or FILE.py:function; the file is written if it does not exist"
    parser.add_argument("--reward", type=expand_home, metavar="VERIFIER", help=reward)
    parser.add_argument("--recipe", default="paced", metavar="NAME", help="see pacedrl recipes (default: %(default)s)")
    parser.add_argument("--prompt-column", metavar="NAME", help="column of the prompt, if it is not found")
    parser.add_argument("--answer-column", metavar="NAME", help="column of the answer, if it is not found")
    parser.add_argument("--force", action="store_true", help="overwrite OUT.yaml")


def run(options: argparse.Namespace) -> int:
    """Write the configuration, and print what to do next."""
    from pacedrl.init.write import write_configuration

    write_configuration(
        options.out,
        options.model,
        options.data,
        subset=options.subset,
        held_out=options.eval,
        reward=options.reward,
        recipe=options.recipe,
        prompt_column=options.prompt_column,
        answer_column=options.answer_column,
        force=options.force,
    )
    return 0
