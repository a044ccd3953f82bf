"""``pacedrl calibrate``."""

import argparse

from pacedrl.cli.arguments import home_path, positive

HELP = "compare a run's accuracy estimates with sampled accuracies, at each of its checkpoints"
EXAMPLE = "runs/demo --prompts 128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run_dir", type=home_path, metavar="RUN", help="folder of a run")
    most = "maximum number of prompts seen, and of those never seen (default: %(default)s)"
    add("--prompts", type=int, default=256, help=most)
    add("--samples", type=int, default=32, help="completions per prompt (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write calibration.json and its page, and print a table."""
    from rich.console import Console
    from rich.markdown import Markdown

    from pacedrl.lab.calibrate import calibrate
    from pacedrl.lab.calibration_page import calibration_table, write_calibration
    from pacedrl.report.pages import require_page
    from pacedrl.view import ConsoleView

    require_page("lab")
    prompts, samples = positive("--prompts", options.prompts), positive("--samples", options.samples)
    with ConsoleView() as view:
        calibration = calibrate(options.run_dir, prompts, samples, view)
    page = write_calibration(options.run_dir, calibration)
    Console().print(Markdown(calibration_table(calibration)))
    print(f"Page: {page}")
    return 0
