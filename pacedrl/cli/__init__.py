"""The command line: one module per verb, with HELP, EXAMPLE, ``add_arguments`` and ``run``.

``run`` returns the exit code. Slow imports (torch, transformers) stay inside it, so that ``pacedrl --help`` is fast.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from pacedrl.cli import calibrate, compare, doctor, evaluate, init, judge, recipes, report, train, watch
from pacedrl.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError
from pacedrl.version import __version__

VERBS = {
    "train": train,
    "eval": evaluate,
    "compare": compare,
    "calibrate": calibrate,
    "report": report,
    "watch": watch,
    "doctor": doctor,
    "judge": judge,
    "init": init,
    "recipes": recipes,
}
DESCRIPTION = "pacedrl: reinforcement learning with verifiable rewards, paced by a learned partition function."
FIRST_STEPS = """\
pacedrl post-trains language models by reinforcement learning with verifiable rewards. To start:

  pacedrl init my.yaml --data FILE   write a commented configuration for your data (without --data: for a demo)
  pacedrl doctor my.yaml             check model, data, verifier and memory
  pacedrl train my.yaml              train; the same command resumes
  pacedrl report runs/my             see how it went

pacedrl --help lists all verbs; pacedrl VERB --help explains one, with an example.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. Without arguments, print the first steps."""
    if not (sys.argv[1:] if arguments is None else arguments):
        print(FIRST_STEPS, end="", file=sys.stderr)
        return EXIT_BAD_INPUT
    options = parse(arguments)
    try:
        code: int = VERBS[options.verb].run(options)
    except InputError as error:
        print(f"pacedrl: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has exited (`| head`). This keeps the interpreter from reporting that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Overrides may come anywhere; argparse alone accepts them only before the first option."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(prog="pacedrl", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"pacedrl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        description = f"{module.HELP[0].upper()}{module.HELP[1:]}."
        verb = verbs.add_parser(
            name, help=module.HELP, description=description, epilog=f"example: pacedrl {name} {module.EXAMPLE}"
        )
        module.add_arguments(verb)
    return parser
