"""Accuracy-estimation-error-prioritised replay (PACED-RL, arXiv 2602.12642)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


@dataclass(frozen=True)
class ReplayEntry:
    """One correct completion kept for later training.

    ``logprobs`` are the behaviour policy's at generation, one a token; ``step`` is when it was generated;
    ``priority`` is |p̂ − p̄| of its prompt then.
    """

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reward: float
    step: int
    priority: float


class ReplayBuffer:
    """The newest admissions of the completions whose prompt's accuracy was most misjudged.

    Of each step's correct completions the ``admit`` with the largest priority enter a buffer of ``capacity``. The paper
    is silent on eviction, reuse and mixing; ours: the oldest leave first when the buffer is full, all that are in it
    train beside the next fresh batch, and none stays longer than ``max_age`` steps. With the paper's 64 of 128 a
    completion is thus replayed at most twice while correct completions keep coming. Priorities come from different φ,
    so keeping the largest ones instead would fill the buffer with stale misjudgements.

    Args:
        capacity: completions held; 0 turns replay off.
        admit: completions of one step that enter at most.
        max_age: steps after which an entry is no longer drawn.
    """

    def __init__(self, capacity: int = 128, admit: int = 64, max_age: int = 8) -> None:
        self.admit = min(admit, capacity)
        self.max_age = max_age
        self.entries: deque[ReplayEntry] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, correct: Iterable[ReplayEntry]) -> int:
        """Admit the entries with the largest priority (ties in the order given); returns how many entered."""
        ranked = sorted(correct, key=lambda entry: -entry.priority)[: self.admit]
        # The largest priority goes in last: should a step admit more than fits, the smallest leave first.
        self.entries.extend(reversed(ranked))
        return len(ranked)

    def draw(self, step: int) -> list[ReplayEntry]:
        """All entries at most ``max_age`` steps old, oldest first; older ones leave the buffer."""
        while self.entries and step - self.entries[0].step > self.max_age:
            self.entries.popleft()
        return list(self.entries)

    def metrics(self, step: int) -> dict[str, float]:
        """``replay/size``, and of ages in steps at ``step`` and priorities the mean and ``QUANTILES``, NaN of none."""
        ages = [float(step - entry.step) for entry in self.entries]
        priorities = [entry.priority for entry in self.entries]
        return {"replay/size": float(len(self.entries))} | _spread("age", ages) | _spread("priority", priorities)

    def state_dict(self) -> dict[str, Any]:
        """The entries as plain values."""
        return {"entries": [asdict(entry) for entry in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.entries.clear()
        for entry in state["entries"]:
            sequences = {name: tuple(entry[name]) for name in ("token_ids", "logprobs")}
            self.entries.append(ReplayEntry(**{**entry, **sequences}))


def _spread(name: str, values: list[float]) -> dict[str, float]:
    points = np.quantile(values, list(QUANTILES.values())).tolist() if values else [math.nan] * len(QUANTILES)
    quantiles = {f"replay/{name}_{quantile}": point for quantile, point in zip(QUANTILES, points, strict=True)}
    return {f"replay/{name}_mean": float(np.mean(values)) if values else math.nan} | quantiles
