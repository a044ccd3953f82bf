"""Rows of a file that hold a completion each, and perhaps the verdict that is expected of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import first_present, read_prompts, value_at
from pacedrl.tasks.files import Row, Rows
from pacedrl.tasks.sources import read_rows
from pacedrl.types import Prompt

COMPLETION_COLUMNS = ("completion", "response", "output", "generation")
"""Tried in this order where no column is named."""
EXPECTED_COLUMN = "expected"
TASK = "judge"
"""The name that messages give to the rows of the file."""


@dataclass(frozen=True)
class Candidate:
    """A completion to judge. ``expected`` is the reward that a person or another grader gives it, in [0, 1]."""

    prompt: Prompt
    text: str
    expected: float | None


def read_candidates(config: TaskConfig, verifier: str, completion: str | None = None) -> list[Candidate]:
    """All rows of ``config.source``. ``completion`` is the name of that column, which is looked for by default.

    Prompt, answer and further columns are those that training would read; the prompt may be missing. Raises InputError
    that names file, row and column.
    """
    rows = islice(read_rows(config), config.limit)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{config.source}: holds no rows; expected one completion a row")
    column = completion or _completion_column(*first)
    if isinstance(value_at(first[1], column, first[0]), list):  # the verifier gets chat messages, as in training
        config = config.model_copy(update={"chat": True})
    texts: list[str] = []
    expected: list[float | None] = []

    def without_completions() -> Rows:
        for where, row in chain([first], rows):
            texts.append(_text(value_at(row, column, where), where, column))
            expected.append(_expected(row, where))
            yield where, {name: value for name, value in row.items() if name != column}

    prompts = list(read_prompts(config, TASK, verifier, without_completions(), prompt_optional=True))
    return [Candidate(*parts) for parts in zip(prompts, texts, expected, strict=True)]


def _completion_column(where: str, row: Row) -> str:
    column = first_present(COMPLETION_COLUMNS, row)
    if column is None:
        raise InputError(
            f"{where}: no completion column ({', '.join(COMPLETION_COLUMNS)}); it has {', '.join(map(str, row))}; "
            "say which with --columns completion=NAME"
        )
    return column


def _text(value: Any, where: str, column: str) -> str:
    match value:
        case None:  # CSV's way to write an empty text
            return ""
        case str() | [{"role": "assistant", "content": str()}]:
            return value if isinstance(value, str) else str(value[0]["content"])
        case list():
            problem = f"holds {str(value)[:80]!r}; expected one message of the assistant's"
        case _:
            problem = f"is a {type(value).__name__}; expected text or a list of one chat message"
    raise InputError(f"{where}: the completion (column '{column}') {problem}")


def _expected(row: Row, where: str) -> float | None:
    """What the row's verdict should be; None where it does not say."""
    column = first_present((EXPECTED_COLUMN,), row)
    value = None if column is None else row[column]
    reward = _number(value) if isinstance(value, str) else value
    if (reward is None and value is None) or (isinstance(reward, float) and math.isnan(reward)):
        return None
    if isinstance(reward, bool | int | float) and 0.0 <= reward <= 1.0:
        return float(reward)
    raise InputError(
        f"{where}: column '{column}' holds {str(value)[:80]!r}; expected the reward that would be right: 0 or 1, true "
        "or false, or a number between"
    )


def _number(text: str) -> float | None:
    """A reward as CSV writes it; None for other text."""
    word = text.strip().lower()
    if word in ("true", "false"):
        return float(word == "true")
    try:
        return float(word)
    except ValueError:
        return None
