"""``pacedrl compare``."""

import argparse
import sys
from pathlib import Path

from pacedrl.cli.arguments import add_config, add_overrides, home_path, positive, whole_numbers
from pacedrl.errors import EXIT_STOPPED, InputError

HELP = "compare how many rollouts recipes need, from the same start, prompts and budget, with several seeds"
EXAMPLE = "examples/demo.yaml --recipes grpo,paced --seeds 3 --rollouts 10000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add = parser.add_argument
    add("--recipes", metavar="A,B,C", help="recipes or variants to compare")
    add("--variants", type=home_path, metavar="FILE.yaml", help="more variants: NAME: [section.key=value, ...]")
    add("--rollouts", type=int, required=True, help="completions that each run may generate")
    add("--seeds", type=int, default=5, help="runs of each recipe (default: %(default)s)")
    add("--first-seed", type=int, default=0, help="first of the consecutive seeds (default: %(default)s)")
    add("--baseline", help="recipe with which the others are compared (default: grpo if present, else the first)")
    add("--target", type=float, help="held-out pass@1 to reach (default: 90%% of the baseline's gain)")
    add("--count", metavar="TASK,TASK", help="evaluation tasks whose mean is compared (default: all)")
    add("--final-k", default="1,2,4,8,16,32,64", help="values of k for the final pass@k (default: %(default)s)")
    add("--jobs", type=int, help="concurrent runs (default: one per GPU, or per CPU core)")
    add("--out", type=home_path, default=Path("runs/compare"), help="folder of runs and results (default: %(default)s)")
    add_overrides(parser)


def run(options: argparse.Namespace) -> int:
    """Run the comparison, write results and page: exit code 0, or EXIT_STOPPED if some runs failed."""
    from rich.console import Console

    from pacedrl.config import config_tree
    from pacedrl.lab.compare import RESULTS, compare
    from pacedrl.lab.plan import Plan, read_variants
    from pacedrl.lab.tables import failures, results_table, unjudged

    if options.target is not None and not 0.0 < options.target <= 1.0:
        raise InputError(f"--target: expected an accuracy above 0, at most 1, got {options.target}")
    plan = Plan(
        tree=config_tree(options.config, options.overrides),
        variants=read_variants(options.recipes.split(",") if options.recipes else (), options.variants),
        seeds=range(options.first_seed, options.first_seed + positive("--seeds", options.seeds)),
        rollouts=positive("--rollouts", options.rollouts),
        final_k=_final_k(options.final_k),
        counted=options.count.split(",") if options.count else (),
        folder=options.out,
    )
    jobs = None if options.jobs is None else positive("--jobs", options.jobs)
    results, page = compare(plan, jobs, options.baseline, options.target, title=options.config.stem)
    Console().print(results_table(results))
    print(f"Results: {plan.folder / RESULTS}\nPage: {page}")
    for line in unjudged(results):
        print(f"pacedrl: warning: {line}", file=sys.stderr)
    for line in failures(results):
        print(f"pacedrl: failed: {line}", file=sys.stderr)
    return EXIT_STOPPED if failures(results) else 0


def _final_k(text: str) -> list[int]:
    values = whole_numbers("--final-k", text)
    if 1 not in values or min(values) < 1:
        raise InputError(f"--final-k: expected whole numbers from 1, with 1 among them, got '{text}'")
    return sorted(set(values))
