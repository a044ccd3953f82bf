"""Which column of unknown data is the prompt and which the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.datasets import ANSWER_COLUMNS, PROMPT_COLUMNS, first_present, value_at
from pacedrl.tasks.files import Row
from pacedrl.tasks.games import GOLD_FIELDS

MORE_PROMPT_COLUMNS = ("input", "text", "task", "puzzle", "quiz", "user_prompt", "user")
MORE_ANSWER_COLUMNS = ("gold", "gold_answer", "correct_answer", "groundtruth", "result", "output", "response")
"""Guessed here, and then written down; those of `pacedrl.tasks.datasets` need no mapping."""

COUNTDOWN = (
    "Use each of the numbers {%s} exactly once, with + - * / and parentheses, to make {%s}. Give the expression "
    "between <answer> and </answer>."
)
"""The prompt for rows that hold nothing but the puzzle."""


@dataclass(frozen=True)
class Columns:
    """Paths into a row. ``others`` are further columns of text, which the prompt may need as well."""

    prompt: str | None
    """None where ``template`` builds the prompt."""
    template: str | None
    answer: str | None
    game: str | None
    """The game whose gold answer is in several columns (`pacedrl.tasks.games.GOLD_FIELDS`)."""
    mapping: dict[str, str]
    """``data.*.columns``: what a task would not find by itself."""
    others: list[str]


def find_columns(row: Row, where: str, prompt: str | None, answer: str | None) -> Columns:
    """The columns that the user named, else the likeliest. InputError when none looks like a prompt.

    No answer is no error: a reward function may do without.
    """
    usual_prompt, usual_answer = first_present(PROMPT_COLUMNS, row), first_present(ANSWER_COLUMNS, row)
    found_prompt = prompt or usual_prompt or first_present(MORE_PROMPT_COLUMNS, row)
    found_answer = answer or usual_answer or first_present(MORE_ANSWER_COLUMNS, row)
    game = None if answer else _game(row, found_answer)
    template = None
    if found_prompt is None:
        if game != "countdown":
            raise InputError(
                f"{where}: no column looks like a prompt ({', '.join(PROMPT_COLUMNS + MORE_PROMPT_COLUMNS)}); it has "
                f"{', '.join(map(str, row))}; say which with --prompt-column"
            )
        template = COUNTDOWN % tuple(first_present(names, row) for names in GOLD_FIELDS[game].values())
    for column in filter(None, (prompt, answer)):
        value_at(row, column, where)
    mapping = {"prompt": found_prompt} if found_prompt is not None and found_prompt != usual_prompt else {}
    if found_answer is not None and found_answer != usual_answer:
        mapping["answer"] = found_answer
    used = {found_prompt, found_answer}
    others = [name for name, value in row.items() if name not in used and _reads_like_a_question(value)]
    return Columns(found_prompt, template, found_answer, game, mapping, others)


def _game(row: Row, answer: str | None) -> str | None:
    """The game whose fields are columns of the row, unless another column states the answer."""
    for game, fields in GOLD_FIELDS.items():
        columns = [first_present(names, row) for names in fields.values()]
        if None not in columns and (answer is None or answer in columns):
            return game
    return None


def _reads_like_a_question(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) >= 3
