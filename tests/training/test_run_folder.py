"""A run's folder: logs that a resumed run continues exactly, and refusal of another run's folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from pacedrl.config import Config, load_config, parse_config
from pacedrl.errors import InputError
from pacedrl.training.run_folder import LOGS, RunFolder


def config(path: Path, **sections: Any) -> Config:
    return parse_config({**sections, "run": {"dir": str(path), **sections.get("run", {})}})


def test_opening_drops_later_steps_and_half_written_lines_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    kept = [
        '{"step": 1, "text": "line\\u2028separator and \\u0085 and é", "x":1.0}\n',
        '{"step":2,  "x": null, "text": "odd   spacing stays"}\n',
        '{"x": 3, "step": 2}\n',
    ]
    for name in LOGS[:2]:
        lines = [*kept, '{"step": 3, "x": 1}\n', '{"step": 10, "x": 1}\n', '{"step": 2, "x": 0.12']
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    folder.open_at(2)
    for name in LOGS[:2]:
        assert (tmp_path / name).read_bytes() == "".join(kept).encode()
    assert not (tmp_path / LOGS[2]).exists()
    assert not list(tmp_path.glob("*.partial"))
    folder.open_at(0)
    assert (tmp_path / LOGS[0]).read_bytes() == b""


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_line_cut_anywhere_is_dropped_or_whole(tmp_path: Path, cut: int) -> None:
    """What was logged is ASCII, so a cut never falls inside a character."""
    folder = RunFolder(config(tmp_path))
    folder.log("metrics.jsonl", {"step": 1, "text": "π"})
    folder.log("metrics.jsonl", {"step": 2, "text": "π\u2028\n", "x": 12.5})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    folder.open_at(2)
    assert path.read_bytes() == (whole if cut >= len(second) - 1 else first)


def test_rows_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    folder = RunFolder(config(tmp_path))
    assert folder.rows("eval.jsonl") == []
    row = {"step": 1, "nan": math.nan, "deep": {"list": [1.5, math.inf, "é\u2028"]}}
    folder.log("eval.jsonl", row)
    folder.log("eval.jsonl", {"step": 2})
    assert folder.rows("eval.jsonl") == [
        {"step": 1, "nan": None, "deep": {"list": [1.5, None, "é\u2028"]}},
        {"step": 2},
    ]
    text = (tmp_path / "eval.jsonl").read_text()
    assert "NaN" not in text
    assert len(text.splitlines()) == 2
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2]


def test_the_resolved_config_is_written_with_versions_and_reads_back(tmp_path: Path) -> None:
    original = config(tmp_path, sampling={"temperature": 0.7})
    RunFolder(original).open_at(0)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(written.pop("versions")) == {"pacedrl", "torch", "transformers", "numpy", "python"}
    assert parse_config(written) == original
    assert load_config(tmp_path / "config.yaml").model_copy(update={"versions": {}}) == original
    assert not (tmp_path / ".writable").exists()


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"objective": {"beta": 0.1}}, "objective.beta"),
        ({"run": {"seed": 1}}, "run.seed"),
        ({"sampling": {"group_size": 4}}, "sampling.group_size"),
        ({"model": {"lora": {"r": 4}}}, "model.lora"),
    ],
)
def test_another_runs_folder_is_refused_and_left_alone(tmp_path: Path, sections: dict[str, Any], field: str) -> None:
    RunFolder(config(tmp_path)).open_at(0)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=field) as caught:
        RunFolder(config(tmp_path, **sections))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"steps": 300, "samples_per_step": 0}},
        {"eval": {"every": 3}},
        {"checkpoint": {"every": 1, "keep": 9}},
        {"verifier": {"workers": 7}},
    ],
)
def test_settings_that_change_no_step_may_change(tmp_path: Path, sections: dict[str, Any]) -> None:
    RunFolder(config(tmp_path)).open_at(0)
    RunFolder(config(tmp_path, **sections)).open_at(0)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    written.pop("versions")
    assert parse_config(written) == config(tmp_path, **sections)


def test_a_folder_that_cannot_be_written_to_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run\.dir: cannot write"):
        RunFolder(config(tmp_path / "file" / "run")).claim()
