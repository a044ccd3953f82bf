"""A look at the data: the columns and verifier of a source, and the prompts to hold out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.init.columns import Columns, find_columns
from pacedrl.init.verifier import Choice, propose
from pacedrl.tasks.columns import value_at
from pacedrl.tasks.datasets import fill
from pacedrl.tasks.games import GOLD_FIELDS, gold_of_fields
from pacedrl.tasks.sources import read_rows, split_names
from pacedrl.types import Prompt

LOOKED_AT = 1000
"""Number of rows from which columns and verifier are chosen."""
HELD_OUT_ONE_IN, HELD_OUT_MAX = 5, 200
"""One row in five is held out, up to a number that can be evaluated in reasonable time."""
GENERATED, GENERATED_HELD_OUT = 2000, 100
"""Numbers of rows that reasoning-gym and the built-in skills generate."""
HELD_OUT_SEED = 1_000_000
"""A row's seed is the dataset's seed plus its number, so the seed of the held-out rows must be far from training's."""

TaskSettings = dict[str, Any]
"""Settings of a task as they are written to YAML; see `pacedrl.config.TaskConfig`."""


@dataclass(frozen=True)
class Survey:
    """The properties of a source."""

    rows: int
    columns: Columns
    choice: Choice | None
    chat: bool
    """Whether prompts are lists of messages."""
    instructed: bool
    """Whether prompts say how to answer: in a system message, or with a word about boxes or tags."""


@dataclass(frozen=True)
class Data:
    """The tasks to train and evaluate on; ``held_out`` is None if there are too few rows to hold any out."""

    train: TaskSettings
    held_out: TaskSettings | None
    split: str
    """Where the held-out rows come from, as a comment in the configuration."""
    survey: Survey
    """The properties of the training source."""
    held_out_prompt: str | None = None
    """Column of the prompt in a separate held-out source."""


def look(source: str, subset: str | None, held_out: str | None, prompt: str | None, answer: str | None) -> Data:
    """Look at the training source, and at the held-out source if it is another one.

    ``subset`` is the configuration of a hub dataset; ``prompt`` and ``answer`` are columns that the user named. Raises
    InputError for a source that cannot be read, is empty, or has no column that looks like a prompt.
    """
    train: TaskSettings = {"source": source}
    if source == "skills":
        train["options"] = {"size": GENERATED}
    elif source.startswith("gym:"):
        train["options"] = {"size": GENERATED, "seed": 0}
    elif subset is not None:
        train["options"] = {"name": subset}
    survey = _survey(TaskConfig(**train), prompt, answer)
    train = _with_columns(train, survey)
    if held_out is not None:
        settings, column = _other_source(held_out, prompt, answer)
        return Data(train, settings, "from a separate source", survey, column)
    if source == "skills":
        test = train | {"split": "test", "options": {"size": GENERATED_HELD_OUT}}
        return Data(train, test, "the skills' own test split", survey)
    if source.startswith("gym:"):
        test = {**train, "options": {"size": GENERATED_HELD_OUT, "seed": HELD_OUT_SEED}}
        return Data(train, test, "generated from other seeds than the training prompts", survey)
    if (name := _held_out_split(split_names(source, subset))) is not None:
        test = {**train, "split": name, "limit": HELD_OUT_MAX}
        return Data(train, test, f"the dataset's own split '{name}'", survey)
    count = min(survey.rows // HELD_OUT_ONE_IN, HELD_OUT_MAX)
    if not count:
        return Data(train, None, "", survey)
    split = f"the first {count} rows, which training skips; if the rows are sorted, shuffle them first"
    return Data({**train, "skip": count}, {**train, "limit": count}, split, survey)


def require_verifier(data: Data) -> Choice:
    """Return the proposed verifier. Raises InputError if the data hold neither answers nor tests."""
    if data.survey.choice is None:
        raise InputError(
            f"{data.train['source']}: no column looks like an answer, and none holds tests; name it with "
            "--answer-column, or judge without answers with a function of your own: --reward FILE.py:function",
            docs="verifiers",
        )
    return data.survey.choice


def _other_source(source: str, prompt: str | None, answer: str | None) -> tuple[TaskSettings, str | None]:
    """The settings of a separate held-out source, and the column of its prompts."""
    settings: TaskSettings = {"source": source}
    if source == "skills":
        settings["split"] = "test"
    elif not source.startswith("gym:") and (names := split_names(source, None)):
        settings["split"] = _held_out_split(names) or names[0]
    survey = _survey(TaskConfig(**settings), prompt, answer)
    limit = {"limit": HELD_OUT_MAX} if survey.rows > HELD_OUT_MAX else {}
    return _with_columns(settings, survey) | limit, survey.columns.prompt


def _survey(task: TaskConfig, prompt: str | None, answer: str | None) -> Survey:
    rows = read_rows(task)
    first = list(islice(rows, LOOKED_AT))
    if not first:
        raise InputError(f"{task.source}: holds no rows; expected one prompt per row")
    where, row = first[0]
    columns = find_columns(row, where, prompt, answer)
    looked_at = [_prompt(columns, row, where) for where, row in first]
    contents = [prompt.content for prompt in looked_at]
    return Survey(
        rows=len(first) + sum(1 for _ in rows),
        columns=columns,
        choice=_choice(task.source, looked_at),
        chat=isinstance(contents[0], list),
        instructed=any(map(_says_how_to_answer, contents)),
    )


def _prompt(columns: Columns, row: dict[str, Any], where: str) -> Prompt:
    if columns.prompt is None:
        assert columns.template is not None  # guaranteed by find_columns
        content = fill(columns.template, row, where)
    else:
        content = value_at(row, columns.prompt, where)
    return Prompt(where, "init", content, _answer(columns, row, where), row)


def _answer(columns: Columns, row: dict[str, Any], where: str) -> Any:
    answer = None if columns.answer is None else value_at(row, columns.answer, where)
    games = (gold_of_fields(game, answer, row if game == columns.game else {}) for game in GOLD_FIELDS)
    return next((gold for gold in games if isinstance(gold, dict)), answer)


def _choice(source: object, prompts: Sequence[Prompt]) -> Choice | None:
    if source == "skills":
        return Choice("exact", "the skills' answers are strings of digits, which the completion must equal")
    if str(source).startswith("gym:"):
        return Choice("gym", "reasoning-gym's own scorer, which may give partial credit")
    return propose([replace(prompt, answer=None) if prompt.answer == "" else prompt for prompt in prompts])


def _says_how_to_answer(content: Any) -> bool:
    messages = content if isinstance(content, list) else [{"content": content}]
    return any(
        isinstance(message, dict)
        and (message.get("role") == "system" or re.search(r"boxed|<answer>", str(message.get("content"))) is not None)
        for message in messages
    )


def _with_columns(settings: TaskSettings, survey: Survey) -> TaskSettings:
    columns = survey.columns
    mapped = settings | ({"columns": columns.mapping} if columns.mapping else {})
    return mapped | ({"prompt_template": columns.template} if columns.template is not None else {})


def _held_out_split(names: Sequence[str]) -> str | None:
    return next((name for name in ("test", "validation") if name in names), None)
