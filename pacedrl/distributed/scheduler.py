"""The scheduler of a run of several processes: it lives on rank 0, and every call's result is broadcast."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, cast

from numpy.typing import ArrayLike
from torch import Tensor

from pacedrl.distributed.ranks import Ranks
from pacedrl.method import DifficultyScheduler, ReplayEntry, Rollouts
from pacedrl.method.estimator import Floats


class Scheduler(Protocol):
    """The methods of `pacedrl.method.DifficultyScheduler` that training calls."""

    def select(self, count: int, exclude: Collection[str] = ()) -> list[str]: ...
    def replay(self) -> list[ReplayEntry]: ...
    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor: ...
    def log_z(self, keys: Sequence[str]) -> Tensor: ...
    def accuracy_estimate(self, keys: Sequence[str]) -> Floats: ...
    def estimate_strength(self, keys: Sequence[str]) -> Floats: ...
    def pool(self) -> dict[str, Any] | None: ...
    def set_truth(self, accuracy_N: ArrayLike) -> None: ...
    def observe(self, fresh: Rollouts, replayed: Rollouts | None = None) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SharedScheduler:
    """Runs each method of a `Scheduler` on rank 0 and returns the result on every process.

    All processes must make the same calls in the same order. ``scheduler`` is None on the other ranks, where the state
    is empty.
    """

    def __init__(self, scheduler: DifficultyScheduler | None, ranks: Ranks) -> None:
        self.scheduler = scheduler
        self.ranks = ranks

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return self.ranks.run_on_main(lambda: getattr(self.scheduler, method)(*arguments, **named))

        return call

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def shared(scheduler: DifficultyScheduler | None, ranks: Ranks) -> Scheduler:
    """Return the scheduler itself for a single process, else a `SharedScheduler`."""
    if ranks.count == 1:
        assert scheduler is not None
        return scheduler
    return cast(Scheduler, SharedScheduler(scheduler, ranks))
