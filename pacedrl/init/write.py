"""Write a configuration for a model and a dataset, and say what to do next."""

import shlex
from pathlib import Path

import yaml

from pacedrl.config import TaskConfig, parse_config
from pacedrl.errors import InputError
from pacedrl.init.data import TaskSettings, look, require_verifier
from pacedrl.init.draft import Draft, cautions, sizes, task_settings
from pacedrl.init.model import local_model
from pacedrl.init.template import configuration
from pacedrl.init.verifier import Choice, missing_file, reward_function
from pacedrl.paths import replace_text
from pacedrl.rollouts.tasks import require_enough_prompts, require_oracle_tasks
from pacedrl.tasks.datasets import Task, load_task


def write_configuration(
    out: Path,
    model: str,
    source: str,
    *,
    subset: str | None,
    held_out: str | None,
    reward: str | None,
    recipe: str,
    prompt_column: str | None,
    answer_column: str | None,
    force: bool,
) -> None:
    """Write ``out``, and the file of the reward function if it does not exist; print what was decided.

    ``subset`` is the configuration of a hub dataset, ``held_out`` another source to evaluate on, ``reward`` a verifier.
    Raises InputError, before anything is written, for bad input.
    """
    _require_writable(out, force)
    recipe_config = parse_config({"recipe": recipe}, "--recipe")
    new_file = None if reward is None else missing_file(reward)
    data = look(source, subset, held_out, prompt_column, answer_column)
    choice = require_verifier(data) if reward is None else Choice(reward, "named with --reward")
    if new_file is not None and data.survey.columns.answer is None:
        raise InputError(
            f"--reward: there is no {new_file}; init would write a function that compares with an answer, but no "
            "column looks like one: name it with --answer-column, or write the function first",
            docs="verifiers",
        )
    draft = Draft(out, model, local_model(model), data, choice, recipe_config)
    if draft.local is not None:
        draft.local.require_trainable()
    train = _load(draft, data.train, new_file)
    tests = [] if data.held_out is None else _load(draft, data.held_out, new_file).prompts
    text = configuration(draft, sizes(draft, train.prompts, tests))
    _check(text, out, train)
    if reward is not None and new_file is not None:
        _write(new_file, reward_function(reward))
        print(f"Wrote {new_file}: a reward function that scores exact match; change it to what your task needs.")
    _write(out, text)
    rest = f"{len(tests):,} held out" if tests else "none held out, because there are too few"
    print(f"Wrote {out}: {len(train.prompts):,} prompts to train on, {rest}; verifier '{choice.verifier}'.")
    print(f"Verifier: {choice.why}.")
    train_keys = {prompt.key for prompt in train.prompts}
    both = sum(prompt.key in train_keys for prompt in tests)
    if both:
        print(f"Careful: {both} held-out prompts are also training prompts; remove repeated rows, or give --eval.")
    for caution in cautions(draft):
        print(f"Careful: {caution}.")
    _print_next_steps(out, new_file)


def _require_writable(out: Path, force: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"'{out}': expected the name of the configuration to write, such as my.yaml")
    if out.exists() and not force:
        raise InputError(f"{out}: exists already; choose another name, or overwrite it with --force")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder '{out.parent}'; make it first")


def _load(draft: Draft, task: TaskSettings, new_file: Path | None) -> Task:
    """The prompts as training will load them. ``exact`` stands in for a reward function that is not written yet."""
    settings = task_settings(draft, task)
    return load_task(TaskConfig.model_validate(settings | ({"verifier": "exact"} if new_file is not None else {})))


def _check(text: str, out: Path, train: Task) -> None:
    """Raise InputError if the configuration is invalid, or if its recipe does not suit the data."""
    config = parse_config(yaml.safe_load(text), str(out))
    require_enough_prompts(config, len(train.prompts))
    require_oracle_tasks(config, [train])


def _write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot write it ({error.strerror})") from None


def _print_next_steps(out: Path, new_file: Path | None) -> None:
    name = shlex.quote(str(out))
    steps = [] if new_file is None else [(f"edit {shlex.quote(str(new_file))}", "what is a good completion?")]
    steps += [
        (f"pacedrl doctor {name}", "checks model, data, verifier and memory"),
        (f"pacedrl train {name}", "trains; the same command resumes"),
        (f"pacedrl report {shlex.quote(f'runs/{out.stem}')}", "shows how it went"),
    ]
    width = max(len(command) for command, _ in steps)
    print("Next:")
    for command, why in steps:
        print(f"  {command:<{width}}   # {why}")
