"""Which column of a row is the prompt, the answer, the completion: one table of names, and the lookup of values."""

from collections.abc import Sequence
from typing import Any, Literal

from pacedrl.errors import InputError, did_you_mean
from pacedrl.tasks.files import Row

Kind = Literal["prompt", "answer", "completion", "expected"]

NAMES: dict[Kind, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "problem", "instruction", "query"),
    "answer": (
        "reward_model.ground_truth",  # verl's; its rows may have an ``answer`` that is not what is rewarded
        "answer",
        "final_answer",
        "expected_answer",
        "ground_truth",
        "solution",
        "label",
        "target",
    ),
    "completion": ("completion", "response", "output", "generation"),
    "expected": ("expected",),
}
"""Names that are tried in this order, ignoring case, if the user names no column."""

MORE_NAMES: dict[Kind, tuple[str, ...]] = {
    "prompt": ("input", "text", "task", "puzzle", "quiz", "user_prompt", "user"),
    "answer": ("gold", "gold_answer", "correct_answer", "groundtruth", "result", "output", "response"),
}
"""Names that ``pacedrl init`` tries after these; it writes the column that it finds into the configuration."""


def find_column(kind: Kind, row: Row, *, more: bool = False) -> str | None:
    """Return the row's column of this kind as a path, or None. With ``more``, try MORE_NAMES after NAMES."""
    return first_present(_names(kind, more), row)


def no_column(kind: Kind, row: Row, where: str, advice: str, why: str = "", *, more: bool = False) -> InputError:
    """Return the error for a row in which ``find_column`` finds nothing."""
    names, present = ", ".join(_names(kind, more)), ", ".join(map(str, row))
    return InputError(f"{where}: no {kind} column ({names}){why}; it has {present}; say which with {advice}")


def _names(kind: Kind, more: bool) -> tuple[str, ...]:
    return NAMES[kind] + (MORE_NAMES[kind] if more else ())


def first_present(names: Sequence[str], row: Row) -> str | None:
    """Return the column that has the first of these names, ignoring case; a name may be a path of two parts."""
    by_lower_case = {column.lower(): column for column in reversed(row)}
    for name in names:
        first, _, rest = name.partition(".")
        column = by_lower_case.get(first)
        if column is not None and (not rest or (isinstance(row[column], dict) and rest in row[column])):
            return f"{column}.{rest}" if rest else column
    return None


def value_at(row: Row, path: str, where: str) -> Any:
    """Return the value of a column, or at a dotted path into it: keys of objects, positions in lists from 0."""
    value: Any = row
    for part in [path] if path in row else path.split("."):
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
            continue
        if not isinstance(value, dict) or part not in value:
            raise InputError(f"{where}: no column '{path}'; it has {', '.join(row)}{did_you_mean(path, row)}")
        value = value[part]
    return value
