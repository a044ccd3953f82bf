"""Trackers: a missing login is found before training, and a resumed run continues its own record."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import LoggerType

from pacedrl.config import Config, parse_config
from pacedrl.doctor import checks
from pacedrl.errors import InputError
from pacedrl.training.trackers import require_trackers, tracking
from pacedrl.training.trainer import Trainer

STAND_IN = """
import json, os

class config:
    @staticmethod
    def update(values, allow_val_change): ...

class Run:
    def log(self, values, step, **_): ...
    def finish(self): ...

def init(**arguments):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(arguments) + "\\n")
    if os.environ.get("BROKEN"):
        raise RuntimeError("no network\\nsecond line")
    return Run()
"""
"""Stand-in for wandb, which needs a network: the functions that accelerate calls."""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the calls of ``wandb.init``, one per line; nobody is logged in."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    calls = tmp_path / "calls.jsonl"
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    yield calls
    sys.modules.pop("wandb", None)


def config(tmp_path: Path, **sections: Any) -> Config:
    return parse_config(
        {
            "run": {"dir": str(tmp_path / "run"), "device": "cpu"},
            "tracking": {"trackers": ["wandb"], "project": "mine"},
            **sections,
        }
    )


def test_without_a_login_doctor_and_train_say_so_first(wandb: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wandb is not logged in: run `wandb login` or set WANDB_API_KEY"):
        Trainer(config(tmp_path))
    assert not (tmp_path / "run").exists()
    first = next(checks(config(tmp_path, model={"name": "./none"})))
    assert first.level == "fail"
    assert "wandb is not logged in" in first.text


@pytest.mark.parametrize(
    ("variables", "files"),
    [
        ({"WANDB_API_KEY": "a" * 40}, {}),
        ({"WANDB_IDENTITY_TOKEN_FILE": "token"}, {}),
        ({"WANDB_MODE": "offline"}, {}),
        ({"WANDB_MODE": "disabled"}, {}),
        ({}, {".netrc": "machine api.wandb.ai login user password key"}),
        ({"NETRC": "~/mine"}, {"mine": "machine api.wandb.ai login user password key"}),
        ({"WANDB_BASE_URL": "https://my.org:8080"}, {".netrc": "machine my.org:8080 login user password key"}),
        ({}, {"wandb/settings": "[default]\nmode = offline\n"}),
        (
            {},
            {
                ".config/wandb/settings": "[default]\nbase_url = https://my.org\n",
                ".netrc": "machine my.org login user password key",
            },
        ),
    ],
)
def test_every_way_to_be_logged_in(
    wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], files: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    require_trackers(config(tmp_path))


@pytest.mark.parametrize(
    ("variables", "netrc"),
    [({}, "machine github.com login user password key"), ({}, "machine"), ({"WANDB_BASE_URL": "https://my.org"}, None)],
)
def test_a_login_to_another_host_does_not_count(
    wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], netrc: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".netrc").write_text(netrc or "machine api.wandb.ai login user password key")
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(InputError, match="not logged in"):
        require_trackers(config(tmp_path))


def test_a_resumed_run_goes_on_in_its_own_record(wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "run").mkdir()
    for step in (0, 3, 7, 0):  # begun, resumed twice, begun again
        with tracking(config(tmp_path), step):
            pass
    calls = [json.loads(line) for line in wandb.read_text().splitlines()]
    assert all(call["project"] == "mine" and call["resume"] == "allow" for call in calls)
    first, second, third, fresh = (call["id"] for call in calls)
    assert first == second == third != fresh
    assert json.loads((tmp_path / "run" / "trackers.json").read_text()) == {"run": fresh}


def test_a_tracker_that_does_not_start_is_named_before_training(
    wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("BROKEN", "1")
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"wandb did not start \(no network\)"), tracking(config(tmp_path), 0):
        raise AssertionError("nothing may run")


def test_tensorboard_hides_what_a_resumed_run_logs_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracked = parse_config(
        {
            "run": {"dir": str(tmp_path), "device": "cpu"},
            "tracking": {"trackers": ["tensorboard"], "project": "mine"},
        }
    )
    for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4, 5))):
        with tracking(tracked, start) as log:
            for step in steps:
                log({"loss": 10.0 * start + step}, step)
    events = accumulator.EventAccumulator(str(tmp_path / "mine")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 23.0),
        (4, 24.0),
        (5, 25.0),
    ]


def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb.sdk")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for step in (0, 1):
        with tracking(config(tmp_path), step) as log:
            log({"loss": 1.0}, step + 1)
    run = json.loads((tmp_path / "run" / "trackers.json").read_text())["run"]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{run}"))) == 2
