"""The command line: thin verbs over the library.

Exit codes: 0 success, 1 training had to stop (compare: some of its runs failed), 2 bad input (one line on standard
error), 130 Ctrl-C (state saved).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pacedrl.errors import InputError
from pacedrl.paths import expand_home, home_path
from pacedrl.version import __version__

EXIT_STOPPED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

FIRST_STEPS = """\
pacedrl post-trains language models by reinforcement learning with verifiable rewards. To start:

  pacedrl init my.yaml --data FILE   write a commented configuration for your data (without --data: for a demo)
  pacedrl doctor my.yaml             check model, data, verifier and memory
  pacedrl train my.yaml              train; the same command resumes
  pacedrl report runs/my             see how it went

pacedrl --help lists all verbs; pacedrl VERB --help explains one, with an example.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; without one, say what to type first."""
    if not (sys.argv[1:] if arguments is None else arguments):
        print(FIRST_STEPS, end="", file=sys.stderr)
        return EXIT_BAD_INPUT
    options = _parse(arguments)
    try:
        code: int = options.run(options)
    except InputError as error:
        print(f"pacedrl: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Overrides may stand anywhere; argparse by itself takes them before the first option only."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    strays = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(options, "overrides")]
    if strays:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pacedrl", description=main.__doc__ and __import__("pacedrl").__doc__)
    parser.add_argument("--version", action="version", version=f"pacedrl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = _verb(verbs, "train", "post-train a model; resumes by itself if the run folder holds a checkpoint")
    train.add_argument("config", type=home_path, metavar="CONFIG.yaml")
    train.epilog = "example: pacedrl train examples/demo.yaml run.steps=20 run.dir=runs/short"
    train.set_defaults(run=_train)

    evaluate = _verb(verbs, "eval", "pass@k, mean@n and diversity of a model on tasks")
    evaluate.add_argument(
        "model", type=expand_home, metavar="MODEL", help="hub name, folder, checkpoint folder, or 'tiny'"
    )
    evaluate.add_argument(
        "--tasks",
        nargs="+",
        type=expand_home,
        metavar="NAME",
        help="skills, gym:NAME, a file, a folder, or a hub dataset",
    )
    evaluate.add_argument(
        "--config", type=home_path, help="take tasks (data.eval) and settings from this configuration"
    )
    evaluate.add_argument(
        "--split", default="test", help="split of hub datasets, folders and built-in skills (default: test)"
    )
    evaluate.add_argument("--k", default=None, help="comma-separated, e.g. 1,8,32 (default: eval.k)")
    evaluate.add_argument("--samples", type=int, help="completions a prompt (default: the largest k, at least 8)")
    evaluate.add_argument("--limit", type=int, help="only the first prompts of each task")
    evaluate.add_argument(
        "--json", type=expand_home, metavar="FILE", help="write the figures as JSON ('-': to standard output)"
    )
    evaluate.epilog = "example: pacedrl eval tiny sampling.max_new_tokens=16 --tasks skills --k 1,8 --limit 64"
    evaluate.set_defaults(run=_eval)

    compare = _verb(
        verbs, "compare", "how many rollouts each recipe needs: same start, prompts and budget, several seeds"
    )
    compare.add_argument("config", type=home_path, metavar="CONFIG.yaml")
    compare.add_argument("--recipes", metavar="A,B,C", help="recipes or variants to compare")
    compare.add_argument(
        "--variants", type=home_path, metavar="FILE.yaml", help="more variants: NAME: [section.key=value, ...]"
    )
    compare.add_argument("--rollouts", type=int, required=True, help="completions that each run may generate")
    compare.add_argument("--seeds", type=int, default=5, help="runs of each recipe (default: 5)")
    compare.add_argument("--first-seed", type=int, default=0, help="the seeds are this one and the next (default: 0)")
    compare.add_argument(
        "--baseline", help="whom the others are compared with (default: grpo if there, else the first)"
    )
    compare.add_argument("--target", type=float, help="held-out pass@1 to reach (default: 90%% of the baseline's gain)")
    compare.add_argument("--count", metavar="TASK,TASK", help="evaluation tasks whose mean is compared (default: all)")
    compare.add_argument(
        "--final-k", default="1,2,4,8,16,32,64", help="pass@k of the last evaluation (default: %(default)s)"
    )
    compare.add_argument("--jobs", type=int, help="runs at a time (default: one a GPU, or a CPU core)")
    compare.add_argument(
        "--out", type=home_path, default=Path("runs/compare"), help="folder of runs and results (%(default)s)"
    )
    compare.epilog = "example: pacedrl compare examples/demo.yaml --recipes grpo,paced --seeds 3 --rollouts 10000"
    compare.set_defaults(run=_compare)

    calibrate = _verb(
        verbs, "calibrate", "a run's accuracy estimates against sampled truth, at each of its checkpoints"
    )
    calibrate.add_argument("run_dir", type=home_path, metavar="RUN", help="folder of a run")
    calibrate.add_argument("--prompts", type=int, default=256, help="of each group, at most (default: %(default)s)")
    calibrate.add_argument("--samples", type=int, default=32, help="completions a prompt (default: %(default)s)")
    calibrate.epilog = "example: pacedrl calibrate runs/demo --prompts 128"
    calibrate.set_defaults(run=_calibrate)

    report = _verb(verbs, "report", "a run, or several overlaid, as one HTML page: plots, completions, what to change")
    report.add_argument("runs", type=home_path, nargs="+", metavar="RUN", help="folder of a run")
    report.add_argument(
        "--out",
        type=home_path,
        metavar="FILE",
        help="the page (default: RUN/report.html; of several runs ./report.html)",
    )
    report.epilog = "example: pacedrl report runs/demo"
    report.set_defaults(run=_report)

    watch = _verb(verbs, "watch", "follow runs, on a local page or in the terminal; stopped and synced ones as well")
    watch.add_argument("runs", type=home_path, nargs="+", metavar="RUN", help="folder of a run, there already or not")
    watch.add_argument("--terminal", action="store_true", help="a dashboard in the terminal instead of a page")
    watch.add_argument("--port", type=int, default=0, help="of the page, on 127.0.0.1 (default: any that is free)")
    watch.add_argument("--open", action="store_true", help="open the page in the browser")
    watch.epilog = "example: pacedrl watch runs/demo --open"
    watch.set_defaults(run=_watch)

    doctor = _verb(verbs, "doctor", "check model, chat template, data, verifier and memory before money is spent")
    doctor.add_argument("config", type=home_path, metavar="CONFIG.yaml")
    doctor.epilog = "example: pacedrl doctor examples/demo.yaml"
    doctor.set_defaults(run=_doctor)

    judge = _verb(verbs, "judge", "try a verifier on completions in a file, judged as in training")
    judge.add_argument(
        "file", type=home_path, metavar="FILE", help=".jsonl, .json, .csv or .parquet; a completion a row"
    )
    judge.add_argument(
        "--verifier",
        type=expand_home,
        required=True,
        metavar="NAME",
        help="a built-in verifier, FILE.py:function or module:function",
    )
    judge.add_argument(
        "--option", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of the built-in verifier"
    )
    judge.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=NAME",
        help="which column is the prompt, the answer or the completion, if it is not found",
    )
    judge.add_argument(
        "--out",
        type=expand_home,
        metavar="VERDICTS",
        help="write row, reward and error as JSONL ('-': standard output)",
    )
    judge.add_argument("--workers", type=int, help="completions judged at once (default: 2)")
    judge.add_argument("--timeout-s", type=float, help="seconds one completion may take (default: 10)")
    judge.add_argument("--limit", type=int, help="only the first rows")
    judge.epilog = "example: pacedrl judge completions.jsonl --verifier math --option percent=value --out -"
    judge.set_defaults(run=_judge)

    init = _verb(verbs, "init", "write a commented configuration for a model and a dataset, after a look at both")
    init.add_argument(
        "out", nargs="?", type=home_path, default=Path("my.yaml"), metavar="OUT.yaml", help="default: %(default)s"
    )
    init.add_argument(
        "--model", type=expand_home, default="tiny", metavar="NAME", help="hub name, folder, or 'tiny' (the default)"
    )
    init.add_argument(
        "--data",
        type=expand_home,
        default="skills",
        metavar="SOURCE",
        help="a file, a folder, a hub dataset, gym:NAME, or skills (the default)",
    )
    init.add_argument("--subset", metavar="NAME", help="configuration of a hub dataset, e.g. main")
    init.add_argument(
        "--eval",
        type=expand_home,
        metavar="SOURCE",
        help="what to evaluate on (default: a part of the data is held out)",
    )
    init.add_argument(
        "--reward",
        type=expand_home,
        metavar="VERIFIER",
        help="a verifier, or FILE.py:function, written if there is no such file",
    )
    init.add_argument("--recipe", default="paced", metavar="NAME", help="see pacedrl recipes (default: %(default)s)")
    init.add_argument("--prompt-column", metavar="NAME", help="which column is the prompt, if it is not found")
    init.add_argument("--answer-column", metavar="NAME", help="which column is the answer, if it is not found")
    init.add_argument("--force", action="store_true", help="replace OUT.yaml if it is there")
    init.epilog = "example: pacedrl init first.yaml --model tiny --data skills"
    init.set_defaults(run=_init)

    recipes = _verb(
        verbs, "recipes", "the methods that recipe: NAME chooses from; with a NAME, its whole configuration"
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="print this one's configuration")
    recipes.epilog = "example: pacedrl recipes paced"
    recipes.set_defaults(run=_recipes)

    for verb in (train, evaluate, compare, doctor):
        verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="change one setting")
    return parser


def _verb(verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")


def _train(options: argparse.Namespace) -> int:
    from pacedrl.config import load_config

    config = load_config(options.config, options.overrides)

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


def _eval(options: argparse.Namespace) -> int:
    from pacedrl.config import Config
    from pacedrl.evaluation.run import eval_config, run_evaluation

    config: Config = eval_config(options)

    from rich.console import Console

    from pacedrl.evaluation.tables import evaluation_notes, evaluation_table
    from pacedrl.view import ConsoleView

    with ConsoleView() as view:
        results = run_evaluation(config, view)
    text = json.dumps({"model": config.model.name, "results": [result.as_dict() for result in results]}, indent=2)
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


def _compare(options: argparse.Namespace) -> int:
    from pacedrl.lab.command import compare

    return compare(options)


def _calibrate(options: argparse.Namespace) -> int:
    from pacedrl.lab.command import calibrate

    return calibrate(options)


def _report(options: argparse.Namespace) -> int:
    from pacedrl.report.command import report

    return report(options)


def _watch(options: argparse.Namespace) -> int:
    from pacedrl.report.live import watch

    return watch(options)


def _doctor(options: argparse.Namespace) -> int:
    from pacedrl.config import load_config

    config = load_config(options.config, options.overrides)

    from pacedrl.doctor import examine

    return EXIT_BAD_INPUT if examine(config) else 0


def _judge(options: argparse.Namespace) -> int:
    from pacedrl.judging.command import judge

    return judge(options)


def _init(options: argparse.Namespace) -> int:
    from pacedrl.init.command import init

    return init(options)


def _recipes(options: argparse.Namespace) -> int:
    from pacedrl.recipes import RECIPES

    if options.name is None:
        width = max(map(len, RECIPES))
        for name, recipe in RECIPES.items():
            print(f"{name:<{width}}  {recipe.summary} ({recipe.paper})")
        return 0

    import yaml

    from pacedrl.config import dump_config, parse_config

    print(yaml.safe_dump(dump_config(parse_config({"recipe": options.name})), sort_keys=False), end="")
    return 0
