"""Logs of a run: files that hold one JSON object per line, each with its ``step``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError

Row = dict[str, Any]

TAIL_BYTES = 1 << 17
"""Bytes at the end of a log that `last_rows` reads."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a log; none if the file does not exist. Raises InputError like `read_lines`."""
    return [row for _, row in read_lines(path)]


def read_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield every line of a log with the row that it holds.

    Blank lines are skipped, and so is a last line without a line end that is not a row: either it is still being
    written, or its writer was killed. Any other line that is not a row raises InputError with the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; fix or remove the line there") from None
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is not None:
            yield line, row
        elif line and number < len(lines):
            raise InputError(f"{path}, line {number}: expected a JSON object with a step; fix or remove the line")


def last_rows(path: Path) -> list[Row]:
    """Rows of the whole lines in the last ``TAIL_BYTES`` of a log; none if it is missing or cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - TAIL_BYTES, 0))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    rows = [_row(line) for line in (lines if size <= TAIL_BYTES else lines[1:])]
    return [row for row in rows if row is not None]


def _row(line: str | bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
