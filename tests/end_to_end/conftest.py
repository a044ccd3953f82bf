"""A command line in a separate folder, and runs that several tests share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import CommandLine, FinishedRun, tiny_run

from pacedrl import Config, Trainer


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """pacedrl's command line, started in the test's own folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    return CommandLine(folder)


@pytest.fixture
def trainer_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """A real trainer of the tiny model, in a separate folder."""
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    made: list[Trainer] = []

    def build(**sections: Any) -> Trainer:
        tree = tiny_run(str(tmp_path / f"run-{len(made)}"), **sections)
        made.append(Trainer(Config.model_validate(tree)))
        return made[-1]

    return build


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Six steps by the real command line, from a fresh interpreter."""
    return _finished(tmp_path_factory.mktemp("full"), real=True, steps=6)


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Twelve uninterrupted steps, which interrupted runs must equal."""
    return _finished(tmp_path_factory.mktemp("long"), real=False, steps=12)


def _finished(folder: Path, real: bool, steps: int) -> FinishedRun:
    cli = CommandLine(folder)
    cli.write("c.yaml", tiny_run(run={"steps": steps}))
    if not real:
        cli("doctor", "missing.yaml")  # start the fork server, which is not to count
    start = time.perf_counter()
    result = cli("train", "c.yaml", real=real)
    return FinishedRun(cli, result, time.perf_counter() - start)
