"""A damaged checkpoint, log or model: one line that names the file and what to do, and nothing is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_process import CommandLine, FinishedRun, Result, snapshot

from pacedrl.assets import TINY_MODEL


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_json(path: Path) -> None:
    path.write_text('{"dict": [')


def another_list(path: Path) -> None:
    path.write_text("[]")


def another_object(path: Path) -> None:
    path.write_text("{}")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGE = [
    ("state", remove),
    ("state/trainer.json", remove),
    ("state/trainer.json", no_json),
    ("state/scheduler.safetensors", half),
    ("state/scheduler.json", empty),
    ("state/optimizer.safetensors", cut),
    ("state/optimizer.json", remove),
    ("state/optimizer.safetensors", empty),
    ("model.safetensors", remove),
    ("model.safetensors", half),
    ("config.json", remove),
    ("config.json", no_json),
    ("tokenizer.json", half),
    ("tokenizer.json", remove),
    ("state/trainer.json", another_list),
    ("state/scheduler.json", another_object),
    ("tokenizer_config.json", remove),
]


@pytest.fixture
def run(cli: CommandLine, full_run: FinishedRun) -> CommandLine:
    """A copy of the finished run, whose checkpoints are those of steps 4 and 6."""
    shutil.copytree(full_run.cli.folder, cli.folder, dirs_exist_ok=True)
    return cli


def assert_one_line(result: Result, *said: str) -> None:
    assert result.code == 2, result.err
    assert len(result.err.splitlines()) == 1, result.err
    for text in said:
        assert text in result.err, result.err


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=lambda value: getattr(value, "__name__", value))
def test_a_run_does_not_resume_from_a_damaged_checkpoint(
    run: CommandLine, name: str, damage: Callable[[Path], None]
) -> None:
    newest = run.folder / "run" / "checkpoints" / "step-00006"
    damage(newest / name)
    before = snapshot(run.folder / "run")
    result = run("train", "c.yaml", "run.steps=7")
    file = "state/" if name == "state" else name
    assert_one_line(result, f"run/checkpoints/step-00006: this checkpoint is damaged: {file}", "step-00004")
    assert snapshot(run.folder / "run") == before
    shutil.rmtree(newest)
    again = run("train", "c.yaml", "run.steps=5")
    assert again.code == 0, again.err
    assert "resuming after step 4" in again.err


def test_an_empty_folder_and_a_run_without_a_whole_checkpoint(run: CommandLine) -> None:
    (run.folder / "run" / "checkpoints" / "step-00009").mkdir()
    assert_one_line(run("train", "c.yaml"), "step-00009", "is missing", "step-00006, the newest whole one")
    for name in ("step-00004", "step-00006"):
        (run.folder / "run" / "checkpoints" / name / "model.safetensors").unlink()
    assert_one_line(run("train", "c.yaml"), "step-00009", "no other one is whole", "run.dir=PATH")


def test_an_emptied_configuration(run: CommandLine) -> None:
    (run.folder / "run" / "config.yaml").write_text("")
    assert_one_line(run("train", "c.yaml"), "run/config.yaml: is empty; this is not the config.yaml of a run")


def test_calibrate_and_eval_say_so_as_well(run: CommandLine) -> None:
    pytest.importorskip("matplotlib")
    folder = run.folder / "run" / "checkpoints" / "step-00006"
    cut(folder / "state" / "scheduler.safetensors")
    assert_one_line(run("calibrate", "run"), "step-00006", "state/scheduler.safetensors")
    arguments = ("eval", "run/checkpoints/step-00006", "--config", "c.yaml")
    result = run(*arguments)
    assert result.code == 0, result.err  # it reads the weights alone
    half(folder / "model.safetensors")
    assert_one_line(run(*arguments), "step-00006", "model.safetensors is cut off or damaged")
    assert run("report", "run").code == 0


@pytest.mark.parametrize(
    ("log", "line"),
    [("metrics.jsonl", "{"), ("eval.jsonl", "[]"), ("groups.jsonl", "null"), ("samples.jsonl", '{"no": "step"}')],
)
def test_a_log_with_a_broken_line_is_refused(run: CommandLine, log: str, line: str) -> None:
    path = run.folder / "run" / log
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *rest]) + "\n")
    before = snapshot(run.folder / "run")
    assert_one_line(run("train", "c.yaml", "run.steps=7"), f"run/{log}, line 2", "remove the line")
    assert snapshot(run.folder / "run") == before


def test_a_half_written_last_line_is_written_again(run: CommandLine) -> None:
    path = run.folder / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 7, "rewar')
    assert run("train", "c.yaml", "run.steps=7").code == 0
    assert path.read_text().startswith(whole)
    assert [row["step"] for row in run.rows("run/metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name, damage in DAMAGE if not name.startswith("state")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_model_with_a_damaged_file(run: CommandLine, name: str, damage: Callable[[Path], None]) -> None:
    shutil.copytree(TINY_MODEL, run.folder / "model")
    if name == "tokenizer_config.json":
        pytest.skip("transformers does without it")
    damage(run.folder / "model" / name)
    said = ("model.name", "'model'", *([name] if damage is not remove else []))
    assert_one_line(run("train", "c.yaml", "model.name=model", "run.dir=new"), *said)
    assert_one_line(run("eval", "model", "--config", "c.yaml"), *said)
    result = run("doctor", "c.yaml", "model.name=model")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert not (run.folder / "new").exists()


def test_a_runs_folder_is_no_model(run: CommandLine) -> None:
    assert_one_line(run("eval", "run", "--config", "c.yaml"), "folder of a run", "run/checkpoints/step-00006")
    assert_one_line(run("eval", "run/checkpoints/step-00099", "--config", "c.yaml"), "no such folder")
