"""Which column of unknown data is the prompt and which the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.datasets import ANSWER_COLUMNS, PROMPT_COLUMNS, first_present, value_at
from pacedrl.tasks.sources import Row

MORE_PROMPT_COLUMNS = ("input", "text", "task", "puzzle", "user_prompt", "user")
MORE_ANSWER_COLUMNS = ("gold", "gold_answer", "correct_answer", "groundtruth", "result", "output", "response")
"""Guessed here, and then written down; those of `pacedrl.tasks.datasets` need no mapping."""


@dataclass(frozen=True)
class Columns:
    """Paths into a row. ``others`` are further columns of text, which the prompt may need as well."""

    prompt: str
    answer: str | None
    mapping: dict[str, str]
    """``data.*.columns``: what a task would not find by itself."""
    others: list[str]


def find_columns(row: Row, where: str, prompt: str | None, answer: str | None) -> Columns:
    """The columns that the user named, else the likeliest. InputError when none looks like a prompt.

    No answer is no error: a reward function may do without.
    """
    usual_prompt, usual_answer = first_present(PROMPT_COLUMNS, row), first_present(ANSWER_COLUMNS, row)
    found_prompt = prompt or usual_prompt or first_present(MORE_PROMPT_COLUMNS, row)
    if found_prompt is None:
        raise InputError(
            f"{where}: no column looks like a prompt ({', '.join(PROMPT_COLUMNS + MORE_PROMPT_COLUMNS)}); it has "
            f"{', '.join(map(str, row))}; say which with --prompt-column"
        )
    found_answer = answer or usual_answer or first_present(MORE_ANSWER_COLUMNS, row)
    for column in filter(None, (prompt, answer)):
        value_at(row, column, where)
    mapping = {"prompt": found_prompt} if found_prompt != usual_prompt else {}
    if found_answer is not None and found_answer != usual_answer:
        mapping["answer"] = found_answer
    used = {found_prompt, found_answer}
    others = [name for name, value in row.items() if name not in used and _reads_like_a_question(value)]
    return Columns(found_prompt, found_answer, mapping, others)


def _reads_like_a_question(value: Any) -> bool:
    return isinstance(value, str) and len(value.split()) >= 3
