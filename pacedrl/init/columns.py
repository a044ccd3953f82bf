"""Proposes which columns of unknown data are the prompt and the answer."""

from dataclasses import dataclass
from typing import Any

from pacedrl.tasks.columns import Kind, find_column, first_present, no_column, value_at
from pacedrl.tasks.files import Row
from pacedrl.tasks.games import GOLD_FIELDS

COUNTDOWN = (
    "Use each of the numbers {%s} exactly once, with + - * / and parentheses, to make {%s}. Give the expression "
    "between <answer> and </answer>."
)
"""The prompt template for rows that contain only the numbers and the target of a puzzle."""


@dataclass(frozen=True)
class Columns:
    """Paths into a row."""

    prompt: str | None
    """None if ``template`` builds the prompt."""
    template: str | None
    answer: str | None
    game: str | None
    """The game whose gold answer is in several columns (`pacedrl.tasks.games.GOLD_FIELDS`)."""
    mapping: dict[str, str]
    """``data.*.columns``: the columns that a task would not find by itself."""
    others: list[str]
    """Other text columns, which the prompt may also need."""


def find_columns(row: Row, where: str, prompt: str | None, answer: str | None) -> Columns:
    """Return the columns that the user named, else the most likely ones.

    Raises InputError if no column looks like a prompt. The answer may be missing: a reward function may not need it.
    """
    found_answer = answer or find_column("answer", row, more=True)
    game = None if answer else _game(row, found_answer)
    found_prompt = prompt or find_column("prompt", row, more=True)
    template = None
    if found_prompt is None and game == "countdown":
        template = COUNTDOWN % tuple(first_present(names, row) for names in GOLD_FIELDS[game].values())
    elif found_prompt is None:
        raise no_column("prompt", row, where, "--prompt-column", more=True)
    for column in filter(None, (prompt, answer)):
        value_at(row, column, where)
    found: dict[Kind, str | None] = {"prompt": found_prompt, "answer": found_answer}
    mapping: dict[str, str] = {
        kind: column for kind, column in found.items() if column not in (None, find_column(kind, row))
    }
    others = [name for name, value in row.items() if name not in found.values() and _reads_like_a_question(value)]
    return Columns(found_prompt, template, found_answer, game, mapping, others)


def _game(row: Row, answer: str | None) -> str | None:
    """Return the game whose fields are columns of the row, unless another column is the answer."""
    for game, fields in GOLD_FIELDS.items():
        columns = [first_present(names, row) for names in fields.values()]
        if None not in columns and (answer is None or answer in columns):
            return game
    return None


def _reads_like_a_question(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) >= 3
