"""Signals at exact moments: at the n-th call of a function, inside the process that calls it."""

from __future__ import annotations

import importlib
import math
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch


def signal_at(target: str, call: int, number: int = signal.SIGKILL, *, after: bool = False) -> Callable[[], None]:
    """A patch for `CommandLine`: signal ``number`` before (or after) the ``call``-th call of ``module:name``."""
    return partial(_install, target, call, int(number), after)


def kill_in_the_middle_of_a_row(log: str, row: int) -> Callable[[], None]:
    """A patch for `CommandLine`: SIGKILL with half of the ``row``-th line of ``log`` written."""
    return partial(_install_half_row, log, row)


def loss_not_finite_in(*steps: int) -> Callable[[], None]:
    """A patch for `CommandLine`: the loss of these steps (counted from 1; by default all) is NaN."""
    return partial(break_loss, frozenset(steps))


def gradient_not_finite(rank: int, step: int) -> Callable[[], None]:
    """A patch for `CommandLine`: the gradients of one process are NaN in this step (counted from 0)."""
    return partial(_install_nan, rank, step)


def break_loss(steps: frozenset[int], replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Make the loss of these updates NaN (of all, if none is named); assumes one micro-batch per update."""
    from pacedrl.training.objectives import trajectory_balance

    original = trajectory_balance.trajectory_balance
    count = 0

    def broken(*arguments: Any) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        nonlocal count
        count += 1
        loss, metrics = original(*arguments)
        if steps and count not in steps:
            return loss, metrics
        return loss * math.nan, {**metrics, "loss/objective": torch.tensor(math.nan)}

    replace(trajectory_balance, "trajectory_balance", broken)


def _install(target: str, call: int, number: int, after: bool) -> None:
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    count = 0

    def signalling(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == call and not after:
            os.kill(os.getpid(), number)
        result = original(*arguments, **options)
        if count == call and after:
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, signalling)


def _install_half_row(log: str, row: int) -> None:
    from pacedrl.training.run_folder import RunFolder

    original = RunFolder.log
    count = 0

    def half(self: RunFolder, name: str, values: Mapping[str, Any]) -> None:
        nonlocal count
        count += name == log
        original(self, name, values)
        if name == log and count == row:
            path = self.path / name
            content = path.read_bytes()
            last = content.rstrip(b"\n").rfind(b"\n") + 1
            path.write_bytes(content[: (last + len(content)) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.log = half  # type: ignore[method-assign]


def _install_nan(rank: int, bad_step: int) -> None:
    if int(os.environ["RANK"]) != rank:
        return
    from pacedrl.training.learner import Learner

    update, accumulate = Learner.update, Learner._micro_batch
    now = 0

    def watched(self: Learner, batch: Any, step: int, *rest: Any) -> Any:
        nonlocal now
        now = step
        return update(self, batch, step, *rest)

    def broken(self: Learner, *arguments: Any) -> Any:
        result = accumulate(self, *arguments)
        if now == bad_step:
            for parameter in self.policy.parameters():
                parameter.grad.fill_(float("nan"))
        return result

    Learner.update, Learner._micro_batch = watched, broken  # type: ignore[method-assign]
