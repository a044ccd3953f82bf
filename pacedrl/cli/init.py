"""``pacedrl init``."""

import argparse
from pathlib import Path

from pacedrl.cli.arguments import home_path
from pacedrl.paths import expand_home

HELP = "inspect a model and a dataset, and write a commented configuration for them"
EXAMPLE = "first.yaml --model tiny --data skills"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    out = "the configuration to write (default: %(default)s)"
    add("out", nargs="?", type=home_path, default=Path("my.yaml"), metavar="OUT.yaml", help=out)
    add("--model", type=expand_home, default="tiny", metavar="NAME", help="hub name, folder, or 'tiny' (the default)")
    data = "a file, a folder, a hub dataset, gym:NAME, or skills (the default)"
    add("--data", type=expand_home, default="skills", metavar="SOURCE", help=data)
    add("--subset", metavar="NAME", help="configuration of a hub dataset, e.g. main")
    add(
        "--eval",
        type=expand_home,
        metavar="SOURCE",
        help="source to evaluate on (default: hold out some of the data)",
    )
    reward = "a verifier, or FILE.py:function; the file is written if it does not exist"
    add("--reward", type=expand_home, metavar="VERIFIER", help=reward)
    add("--recipe", default="paced_plus", metavar="NAME", help="see pacedrl recipes (default: %(default)s)")
    add("--prompt-column", metavar="NAME", help="column of the prompt, if it is not found")
    add("--answer-column", metavar="NAME", help="column of the answer, if it is not found")
    add("--force", action="store_true", help="overwrite OUT.yaml")


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
