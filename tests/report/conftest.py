"""Real runs of the tiny model, made once, and what tests make of their logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from altered import tiny
from chromium import chromium, short_run, visit  # noqa: F401 (fixtures)

from pacedrl import Config, Trainer
from pacedrl.report.run import RunLogs, load_run
from pacedrl.training.trainer import TrainingStopped

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains the tiny model as `tiny` says, with changes; the run's folder. A run that had to stop is as good."""
    base = tmp_path_factory.mktemp("runs")

    def run(name: str, **sections: Any) -> Path:
        before = os.environ.get("PACEDRL_CACHE")
        os.environ["PACEDRL_CACHE"] = str(base / "cache")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            trainer = Trainer(Config.model_validate(tiny(base / name, **sections)))
            with contextlib.suppress(TrainingStopped):
                trainer.train()
        finally:
            torch.set_num_threads(threads)
            os.environ.pop("PACEDRL_CACHE")
            if before is not None:
                os.environ["PACEDRL_CACHE"] = before
        return base / name

    return run


@pytest.fixture(scope="session")
def folder(train: Train) -> Path:
    """A healthy run of twelve steps; nothing may write into it."""
    return train("healthy")


@pytest.fixture(scope="session")
def run(folder: Path) -> RunLogs:
    return load_run(folder)


@pytest.fixture(scope="session")
def seeds(train: Train, folder: Path) -> list[Path]:
    """The healthy run and another seed of it."""
    return [folder, train("healthy-1", run={"seed": 1})]


@pytest.fixture(scope="session")
def grpo(train: Train) -> Path:
    """A run of a recipe that estimates nothing and does not replay."""
    return train("grpo", recipe="grpo", replay={"enabled": False}, run={"steps": 4})
