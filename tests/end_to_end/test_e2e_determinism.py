"""The deterministic mode: torch's deterministic algorithms in the update, and in the update alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pacedrl.config import parse_config
from pacedrl.errors import InputError
from pacedrl.policy.determinism import deterministic
from pacedrl.training.trainer import Trainer


def is_on() -> bool:
    return torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_setting_is_restored_also_on_an_exception() -> None:
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    modes: list[bool] = []

    def interrupt() -> None:
        modes.append(is_on())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), deterministic(True):
        interrupt()
    assert modes == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def noting(call: Callable[..., Any], seen: set[bool]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        seen.add(is_on())
        return call(*arguments, **named)

    return noted


@pytest.mark.parametrize("wanted", [True, False])
def test_only_the_update_and_the_fit_of_log_z_are_deterministic(
    trainer_of: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    trainer = trainer_of(run={"steps": 2, "deterministic": wanted})
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == (":4096:8" if wanted else None)
    seen: dict[str, set[bool]] = {"update": set(), "observe": set(), "sample": set()}
    for owner, name in ((trainer.learner, "update"), (trainer.scheduler, "observe"), (trainer.collector, "sample")):
        monkeypatch.setattr(owner, name, noting(getattr(owner, name), seen[name]))
    trainer.train()
    assert seen == {"update": {wanted}, "observe": {wanted}, "sample": {False}}


def test_sampling_ahead_cannot_be_deterministic() -> None:
    with pytest.raises(InputError, match=r"run\.deterministic: cannot be combined with sampling\.ahead"):
        parse_config({"run": {"deterministic": True}, "sampling": {"ahead": True}})
