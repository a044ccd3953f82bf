"""What there is to learn from: sources looked at, their columns, their verifier, and what is held out."""

from __future__ import annotations

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
"""Rows that columns and verifier are judged by."""
HELD_OUT_SHARE, HELD_OUT_MOST = 5, 200
"""One row in as many is held out, up to a number that is evaluated in reasonable time."""
GENERATED, GENERATED_HELD_OUT = 2000, 100
"""Rows asked of reasoning-gym and of the built-in skills."""
FAR = 1_000_000

Settings = dict[str, Any]
"""Of a task, as they are written: `pacedrl.config.TaskConfig`."""


@dataclass(frozen=True)
class Survey:
    """What was found in a source."""

    rows: int
    columns: Columns
    choice: Choice | None
    chat: bool
    """Whether prompts are lists of messages."""
    told: bool
    """Whether they say themselves how to answer: a system message, or a word on boxes or tags."""


@dataclass(frozen=True)
class Data:
    """``train`` and ``held_out`` as settings, the latter None where nothing can be spared; why, for comments."""

    train: Settings
    held_out: Settings | None
    split: str
    survey: Survey
    """What was found in the training source."""
    held_out_prompt: str | None = None
    """The prompt's column in a held-out source of its own."""


def look(source: str, subset: str | None, held_out: str | None, prompt: str | None, answer: str | None) -> Data:
    """Look at the training source, and at the held-out one if it is another.

    ``subset`` is the configuration of a hub dataset, ``prompt`` and ``answer`` are columns that the user named. Raises
    InputError for a source that cannot be read, is empty, or has no column that looks like a prompt.
    """
    options = {"name": subset} if subset is not None else {}
    if source == "skills" or source.startswith("gym:"):
        train, rest, split = _generated(source)
    else:
        train, rest, split = ({"source": source} | ({"options": options} if options else {})), None, ""
    survey = _survey(TaskConfig(**train), prompt, answer)
    train = _mapped(train, survey)
    if held_out is not None:
        settings, column = _other(held_out, prompt, answer)
        return Data(train, settings, "from a source of its own", survey, column)
    if rest is not None:
        return Data(train, _mapped(rest, survey), split, survey)
    if (name := _held_out_split(split_names(source, subset))) is not None:
        return Data(
            train, {**train, "split": name, "limit": HELD_OUT_MOST}, f"the dataset's own split '{name}'", survey
        )
    spared = min(survey.rows // HELD_OUT_SHARE, HELD_OUT_MOST)
    if not spared:
        return Data(train, None, "", survey)
    split = f"the first {spared} rows, which training skips; if the rows are sorted, shuffle them first"
    return Data({**train, "skip": spared}, {**train, "limit": spared}, split, survey)


def require_verifier(data: Data) -> Choice:
    """The proposed verifier; InputError where there was nothing to judge by."""
    if data.survey.choice is None:
        raise InputError(
            f"{data.train['source']}: no column looks like an answer, and none holds tests; say which with "
            "--answer-column, or judge without by a function of your own with --reward FILE.py:function",
            docs="verifiers",
        )
    return data.survey.choice


def _generated(source: str) -> tuple[Settings, Settings, str]:
    if source == "skills":
        train: Settings = {"source": source, "options": {"size": GENERATED}}
        rest: Settings = {"source": source, "split": "test", "options": {"size": GENERATED_HELD_OUT}}
        return train, rest, "the skills' own test split"
    train = {"source": source, "options": {"size": GENERATED, "seed": 0}}
    # A row's seed is the data set's plus its number, so the next seed would give nearly the same rows again.
    rest = {"source": source, "options": {"size": GENERATED_HELD_OUT, "seed": FAR}}
    return train, rest, "generated from seeds that training is far from"


def _other(source: str, prompt: str | None, answer: str | None) -> tuple[Settings, str | None]:
    """The settings of another source, and its prompt's column."""
    settings: Settings = {"source": source}
    if source == "skills":
        settings["split"] = "test"
    elif not source.startswith("gym:") and (names := split_names(source, None)):
        settings["split"] = _held_out_split(names) or names[0]
    survey = _survey(TaskConfig(**settings), prompt, answer)
    limit = {"limit": HELD_OUT_MOST} if survey.rows > HELD_OUT_MOST else {}
    return _mapped(settings, survey) | limit, survey.columns.prompt


def _survey(task: TaskConfig, prompt: str | None, answer: str | None) -> Survey:
    rows = read_rows(task)
    first = list(islice(rows, LOOKED_AT))
    if not first:
        raise InputError(f"{task.source}: holds no rows; expected one prompt a row")
    where, row = first[0]
    columns = find_columns(row, where, prompt, answer)
    looked_at = [_prompt(columns, row, where) for where, row in first]
    contents = [prompt.content for prompt in looked_at]
    return Survey(
        rows=len(first) + sum(1 for _ in rows),
        columns=columns,
        choice=_choice(task.source, looked_at),
        chat=isinstance(contents[0], list),
        told=any(map(_tells_how_to_answer, contents)),
    )


def _prompt(columns: Columns, row: dict[str, Any], where: str) -> Prompt:
    if columns.prompt is None:
        assert columns.template is not None  # find_columns
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
        return Choice("exact", "the skills' answers are strings of digits, and the completion must equal them")
    if str(source).startswith("gym:"):
        return Choice("gym", "reasoning-gym's own scorer, which may give part of the reward")
    return propose([replace(prompt, answer=None) if prompt.answer == "" else prompt for prompt in prompts])


def _tells_how_to_answer(content: Any) -> bool:
    messages = content if isinstance(content, list) else [{"content": content}]
    return any(
        isinstance(message, dict)
        and (message.get("role") == "system" or re.search(r"boxed|<answer>", str(message.get("content"))) is not None)
        for message in messages
    )


def _mapped(settings: Settings, survey: Survey) -> Settings:
    columns = survey.columns
    made = settings | ({"columns": columns.mapping} if columns.mapping else {})
    return made | ({"prompt_template": columns.template} if columns.template is not None else {})


def _held_out_split(names: Sequence[str]) -> str | None:
    """The split that is made for evaluation."""
    return next((name for name in ("test", "validation") if name in names), None)
