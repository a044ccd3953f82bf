"""The scheduler of a run of several processes: it lives in the main one, and the others are told what it says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from numpy.typing import ArrayLike
from torch import Tensor

from pacedrl.distributed.ranks import Ranks
from pacedrl.method import DifficultyScheduler, ReplayEntry, Rollouts
from pacedrl.method.estimator import Floats


class Scheduler(Protocol):
    """What training asks of `pacedrl.method.DifficultyScheduler`."""

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
    """A `Scheduler` that all processes may ask, all the same thing at the same time. Only the main one's decides.

    ``scheduler`` is None in the others. Its state is the main one's: elsewhere it is empty.
    """

    def __init__(self, scheduler: DifficultyScheduler | None, ranks: Ranks) -> None:
        self.scheduler = scheduler
        self.ranks = ranks

    @property
    def own(self) -> DifficultyScheduler:
        """The main process's."""
        assert self.scheduler is not None
        return self.scheduler

    def select(self, count: int, exclude: Collection[str] = ()) -> list[str]:
        return self.ranks.decide(lambda: self.own.select(count, exclude))

    def replay(self) -> list[ReplayEntry]:
        return self.ranks.decide(lambda: self.own.replay())

    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor:
        return self.ranks.decide(lambda: self.own.advantage(keys, reward_B))

    def log_z(self, keys: Sequence[str]) -> Tensor:
        return self.ranks.decide(lambda: self.own.log_z(keys))

    def accuracy_estimate(self, keys: Sequence[str]) -> Floats:
        return self.ranks.decide(lambda: self.own.accuracy_estimate(keys))

    def estimate_strength(self, keys: Sequence[str]) -> Floats:
        return self.ranks.decide(lambda: self.own.estimate_strength(keys))

    def pool(self) -> dict[str, Any] | None:
        return self.ranks.decide(lambda: self.own.pool())

    def set_truth(self, accuracy_N: ArrayLike) -> None:
        self.ranks.decide(lambda: self.own.set_truth(accuracy_N))

    def observe(self, fresh: Rollouts, replayed: Rollouts | None = None) -> dict[str, float]:
        return self.ranks.decide(lambda: self.own.observe(fresh, replayed))

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def shared(scheduler: DifficultyScheduler | None, ranks: Ranks) -> Scheduler:
    """The scheduler itself where there is one process, else a `SharedScheduler`."""
    if ranks.count == 1:
        assert scheduler is not None
        return scheduler
    return SharedScheduler(scheduler, ranks)
