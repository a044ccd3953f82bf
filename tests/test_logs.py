"""Logs of a run: whole, half-written and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacedrl.errors import InputError
from pacedrl.logs import TAIL_BYTES, last_rows, read_lines, read_rows


def test_rows_and_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == last_rows(path) == []
    path.write_text('{"step": 1, "x": 1.0}\n\n{"x":2,  "step":2}\n{"step": 3, "x"')
    assert list(read_lines(path)) == [
        ('{"step": 1, "x": 1.0}', {"step": 1, "x": 1.0}),
        ('{"x":2,  "step":2}', {"x": 2, "step": 2}),
    ]
    assert last_rows(path) == read_rows(path)
    path.write_text('{"step": 1}\n{"step": 2}')  # the last line lacks nothing but its end
    assert read_rows(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ["{", "[1]", '{"no": "step"}', '{"step": 1.5}', "\x00"])
def test_a_complete_line_that_is_no_row_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(InputError, match=r"eval\.jsonl, line 2: expected a JSON object with a step"):
        read_rows(path)
    path.write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(InputError, match=r"eval\.jsonl: byte 12 is not UTF-8"):
        read_rows(path)


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    text = "x" * 1000
    path.write_text("".join(f'{{"step": {step}, "text": "{text}"}}\n' for step in range(1, 1001)))
    steps = [row["step"] for row in last_rows(path)]
    assert steps == list(range(1001 - len(steps), 1001))
    assert TAIL_BYTES // 1100 < len(steps) < TAIL_BYTES // 1000
