"""Reads a file whose rows contain a completion and, optionally, its expected reward."""

import contextlib
import math
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.columns import find_column, no_column, value_at
from pacedrl.tasks.datasets import read_prompts
from pacedrl.tasks.files import Row
from pacedrl.tasks.sources import read_rows
from pacedrl.types import Completion, Prompt

TASK = "judge"
"""The name of the task in messages."""


@dataclass(frozen=True)
class Candidate:
    """A completion to judge. ``expected`` is the reward in [0, 1] that a person or another grader gave it."""

    row: int  # from 1
    prompt: Prompt
    completion: Completion
    expected: float | None

    @property
    def disagrees(self) -> bool:
        """Whether the reward differs from the expected one; False without either of them."""
        reward, expected = self.completion.reward, self.expected
        return reward is not None and expected is not None and abs(reward - expected) > 1e-6


def read_candidates(config: TaskConfig, verifier: str, completion: str | None = None) -> list[Candidate]:
    """Read all rows of ``config.source``. ``completion`` names the column of the completions; None guesses it.

    Prompt, answer and other columns are read as in training, but the prompt may be missing. Raises InputError that
    names file, row and column.
    """
    rows = list(islice(read_rows(config), config.limit))
    if not rows:
        raise InputError(f"{config.source}: holds no rows; expected one completion per row")
    where, row = rows[0]
    column = completion or find_column("completion", row)
    if column is None:
        raise no_column("completion", row, where, "--columns completion=NAME")
    if isinstance(value_at(row, column, where), list):  # the verifier gets chat messages, as in training
        config = config.model_copy(update={"chat": True})
    completions = [Completion([], [], _text(value_at(row, column, where), where, column)) for where, row in rows]
    expected = [_expected(row, where) for where, row in rows]
    others = ((where, {name: value for name, value in row.items() if name != column}) for where, row in rows)
    prompts = read_prompts(config, TASK, verifier, others, prompt_optional=True)
    return list(map(Candidate, count(1), prompts, completions, expected))


def _text(value: Any, where: str, column: str) -> str:
    match value:
        case None:  # an empty text in a CSV file
            return ""
        case str() | [{"role": "assistant", "content": str()}]:
            return value if isinstance(value, str) else str(value[0]["content"])
        case list():
            problem = f"holds {str(value)[:80]!r}; expected one message of the assistant's"
        case _:
            problem = f"is a {type(value).__name__}; expected text or a list of one chat message"
    raise InputError(f"{where}: the completion (column '{column}') {problem}")


def _expected(row: Row, where: str) -> float | None:
    column = find_column("expected", row)
    value = None if column is None else row[column]
    if value is None:
        return None
    with contextlib.suppress(ValueError):
        word = str(value).strip().lower()
        reward = float({"true": 1.0, "false": 0.0}.get(word, word))
        if math.isnan(reward):
            return None
        if 0.0 <= reward <= 1.0:
            return reward
    raise InputError(
        f"{where}: column '{column}' holds {str(value)[:80]!r}; expected the reward that would be right: 0 or 1, true "
        "or false, or a number between"
    )
