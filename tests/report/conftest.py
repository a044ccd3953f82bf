"""Real runs of the tiny model, made once, and what tests make of their logs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from altered import noisy, tiny, written
from chromium import chromium, short_run, visit  # noqa: F401 (fixtures)

from pacedrl import Config, Trainer
from pacedrl.report.run import RunLogs, load_run
from pacedrl.training.trainer import TrainingStopped

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train the tiny model as `tiny` says, with changes, and return the folder. The run may have had to stop."""
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
def seeds(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The healthy run, and a copy with slightly altered rows as the run of another seed."""
    other = noisy(load_run(folder))
    config = other.config | {"run": other.config["run"] | {"seed": 1}}
    return [folder, written(replace(other, config=config), tmp_path_factory.mktemp("seeds") / "healthy-1")]


@pytest.fixture(scope="session")
def grpo(train: Train) -> Path:
    """A run of a recipe that estimates nothing and does not replay."""
    return train("grpo", recipe="grpo", replay={"enabled": False}, run={"steps": 4})
