"""The scheduler of a run of several processes: it lives on rank 0, and every call's result is broadcast."""

from collections.abc import Callable
from typing import Any, cast

from pacedrl.distributed.ranks import Ranks
from pacedrl.method import DifficultyScheduler

Scheduler = DifficultyScheduler
"""The type of a scheduler, whether shared or not."""


class SharedScheduler:
    """Runs each method of a scheduler on rank 0 and returns the result on every process.

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
