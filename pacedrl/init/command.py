"""`pacedrl init`: look, decide, check, write, and say what comes next."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import yaml

from pacedrl.config import Config, TaskConfig, parse_config
from pacedrl.errors import InputError
from pacedrl.init import reward
from pacedrl.init.data import look, require_verifier
from pacedrl.init.model import known_model
from pacedrl.init.plan import Plan, cautions, task_settings
from pacedrl.init.sizes import Kind, sizes
from pacedrl.init.template import configuration
from pacedrl.init.verifier import Choice
from pacedrl.tasks.datasets import Task, load_task


def init(options: argparse.Namespace) -> int:
    """Write the configuration, and the reward function if there is none yet. Nothing is written on bad input."""
    out: Path = options.out
    _require_writable(out, options.force)
    recipe = parse_config({"recipe": options.recipe}, "--recipe")
    skeleton = None if options.reward is None else reward.missing_file(options.reward)
    data = look(options.data, options.subset, options.eval, options.prompt_column, options.answer_column)
    named = None if options.reward is None else Choice(options.reward, "named with --reward")
    choice = named or require_verifier(data)
    if skeleton is not None and data.survey.columns.answer is None:
        raise InputError(
            f"--reward: there is no {skeleton}; the function written to start from compares with an answer, and no "
            "column looks like one: say which with --answer-column, or write the function first",
            docs="verifiers",
        )
    plan = Plan(out, options.model, known_model(options.model), data, choice, recipe)
    if plan.known is not None:
        plan.known.require_trainable()
    train = _load(plan, data.train, skeleton)
    held_out = [] if data.held_out is None else _load(plan, data.held_out, skeleton).prompts
    size = sizes(_kind(options.model), recipe, plan.known, train.prompts, held_out, choice.verifier)
    text = configuration(plan, size)
    _check(parse_config(yaml.safe_load(text), str(out)), train)
    if skeleton is not None:
        _write(skeleton, reward.skeleton(options.reward))
        print(f"Wrote {skeleton}: a reward function that scores exact match; change it to what your task needs.")
    _write(out, text)
    rest = f"{len(held_out):,} held out" if held_out else "none held out, as there are too few"
    print(f"Wrote {out}: {len(train.prompts):,} prompts to train on, {rest}; verifier '{choice.verifier}'.")
    print(f"Verifier: {choice.why}.")
    seen = {prompt.key for prompt in train.prompts}
    both = sum(prompt.key in seen for prompt in held_out)
    if both:
        print(f"Careful: {both} held-out prompts are trained on as well; remove repeated rows, or give --eval.")
    for caution in cautions(plan):
        print(f"Careful: {caution}.")
    _say_what_is_next(out, skeleton)
    return 0


def _require_writable(out: Path, force: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"'{out}': expected the name of the configuration to write, such as my.yaml")
    if out.exists() and not force:
        raise InputError(f"{out}: is there already; name another file, or replace it with --force")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder '{out.parent}'; make it first")


def _load(plan: Plan, task: dict[str, object], skeleton: Path | None) -> Task:
    """The prompts as training will see them. A function that is still to be written compares, as ``exact`` does."""
    settings = task_settings(plan, task)
    return load_task(TaskConfig.model_validate(settings | ({"verifier": "exact"} if skeleton is not None else {})))


def _kind(model: str) -> Kind:
    import torch

    if model == "tiny":
        return "tiny"
    return "gpu" if torch.cuda.is_available() else "cpu"


def _check(config: Config, train: Task) -> None:
    """What the recipe asks of the data, before anything is written."""
    from pacedrl.rollouts.tasks import require_enough_prompts, require_oracle_tasks

    require_enough_prompts(config, len(train.prompts))
    require_oracle_tasks(config, [train])


def _write(path: Path, text: str) -> None:
    from pacedrl.training.run_folder import replace_text

    try:
        replace_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror})") from None


def _say_what_is_next(out: Path, skeleton: Path | None) -> None:
    name = shlex.quote(str(out))
    steps = [] if skeleton is None else [(f"edit {shlex.quote(str(skeleton))}", "what is a good completion?")]
    steps += [
        (f"pacedrl doctor {name}", "checks model, data, verifier and memory"),
        (f"pacedrl train {name}", "trains; the same command resumes"),
        (f"pacedrl report {shlex.quote(f'runs/{out.stem}')}", "shows how it went"),
    ]
    width = max(len(command) for command, _ in steps)
    print("Next:")
    for command, why in steps:
        print(f"  {command:<{width}}   # {why}")
