"""The verbs ``compare`` and ``calibrate``: from the command line's options to results and their page."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.markdown import Markdown

from pacedrl.config import config_tree
from pacedrl.errors import EXIT_STOPPED, InputError
from pacedrl.evaluation.run import whole_numbers
from pacedrl.lab import compare as lab
from pacedrl.lab.calibrate import calibrate as calibrate_run
from pacedrl.lab.calibration_page import calibration_table, write_calibration
from pacedrl.lab.page import require_page
from pacedrl.lab.plan import Plan, read_variants
from pacedrl.lab.tables import failures, results_table, unjudged
from pacedrl.view import ConsoleView


def compare(options: argparse.Namespace) -> int:
    """Run a comparison and print its results; the exit code is 1 when some runs failed. Raises InputError."""
    if options.target is not None and not 0.0 < options.target <= 1.0:
        raise InputError(f"--target: expected an accuracy above 0, at most 1, got {options.target}")
    jobs = None if options.jobs is None else _at_least_one("--jobs", options.jobs)
    first = options.first_seed
    plan = Plan(
        tree=config_tree(options.config, options.overrides),
        variants=read_variants(options.recipes.split(",") if options.recipes else (), options.variants),
        seeds=range(first, first + _at_least_one("--seeds", options.seeds)),
        rollouts=_at_least_one("--rollouts", options.rollouts),
        final_k=_final_k(options.final_k),
        counted=options.count.split(",") if options.count else (),
        folder=options.out,
    )
    results, page = lab.compare(plan, jobs, options.baseline, options.target, title=options.config.stem)
    Console().print(results_table(results))
    print(f"Results: {plan.folder / lab.RESULTS}\nPage: {page}")
    for line in unjudged(results):
        print(f"pacedrl: warning: {line}", file=sys.stderr)
    for line in failures(results):
        print(f"pacedrl: failed: {line}", file=sys.stderr)
    return EXIT_STOPPED if failures(results) else 0


def calibrate(options: argparse.Namespace) -> int:
    """Write calibration.json and its page, and print the table. Raises InputError."""
    require_page()
    prompts, samples = _at_least_one("--prompts", options.prompts), _at_least_one("--samples", options.samples)
    with ConsoleView() as view:
        calibration = calibrate_run(options.run_dir, prompts, samples, view)
    page = write_calibration(options.run_dir, calibration)
    Console().print(Markdown(calibration_table(calibration)))
    print(f"Page: {page}")
    return 0


def _at_least_one(option: str, value: int) -> int:
    if value < 1:
        raise InputError(f"{option}: expected at least 1, got {value}")
    return value


def _final_k(text: str) -> list[int]:
    ks = whole_numbers(text, "--final-k")
    if 1 not in ks or min(ks) < 1:
        raise InputError(f"--final-k: expected whole numbers from 1, with 1 among them, got '{text}'")
    return sorted(set(ks))
