"""``~`` is the home folder in every path of the configuration and of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacedrl.cli import parse
from pacedrl.config import Config, load_config

OVERRIDES = {
    "run.dir=~/x": lambda config: str(config.run.dir),
    "run.dir='~/x'": lambda config: str(config.run.dir),
    "model.name=~/x": lambda config: config.model.name,
    "data.train.source=~/x": lambda config: config.data.train[0].source,
    "data.train.verifier=~/x": lambda config: config.data.train[0].verifier,
    "data.train={extra_rewards: [{name: a, weight: 1, verifier: ~/x}]}": lambda config: (
        config.data.train[0].extra_rewards[0].verifier
    ),
}
COMMANDS = {
    "train ~/x": "config",
    "doctor ~/x": "config",
    "eval ~/x": "model",
    "eval tiny --tasks ~/x": "tasks",
    "eval tiny --config ~/x": "config",
    "eval tiny --json ~/x": "json",
    "compare ~/x --rollouts 1": "config",
    "compare c.yaml --rollouts 1 --variants ~/x": "variants",
    "compare c.yaml --rollouts 1 --out ~/x": "out",
    "calibrate ~/x": "run_dir",
    "report ~/x": "runs",
    "report run --out ~/x": "out",
    "watch ~/x": "runs",
    "judge ~/x --verifier math": "file",
    "judge rows.jsonl --verifier ~/x": "verifier",
    "judge rows.jsonl --verifier math --out ~/x": "out",
    "init ~/x": "out",
    "init --model ~/x": "model",
    "init --data ~/x": "data",
    "init --eval ~/x": "eval",
    "init --reward ~/x": "reward",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("override", OVERRIDES)
def test_in_the_configuration(override: str, home: Path) -> None:
    assert OVERRIDES[override](load_config(None, [override])) == f"{home}/x"


def test_in_yaml_files_and_in_python(home: Path) -> None:
    (home / "c.yaml").write_text("run: {dir: '~/a b'}\nmodel: {name: \"~/m\"}\n")
    config = load_config(Path("~/c.yaml"))
    assert (config.run.dir, config.model.name) == (home / "a b", f"{home}/m")
    assert Config.model_validate({"run": {"dir": Path("~/a")}}).run.dir == home / "a"


@pytest.mark.parametrize("command", COMMANDS)
def test_on_the_command_line(command: str, home: Path) -> None:
    value = getattr(parse(command.split()), COMMANDS[command])
    assert str(value[0] if isinstance(value, list) else value) == f"{home}/x"


@pytest.mark.parametrize("text", ["a/~/b", "org/model", "./~x", "skills", "math", "gym:x"])
def test_elsewhere_it_is_an_ordinary_character(text: str) -> None:
    assert load_config(None, [f"model.name={text}"]).model.name == text
