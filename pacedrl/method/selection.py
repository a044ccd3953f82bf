"""Which prompts to sample next, and which of the sampled groups to train on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import Beliefs, Floats

Indices = NDArray[np.int64]

SelectionMethod = Literal["nearest", "uniform", "thompson", "learnability", "noise"]

NEVER = -(2**40)
"""``last_used`` of a prompt that was never used."""
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


def selection_score(
    method: SelectionMethod, beliefs: Beliefs, visits_N: Indices, target: float, rng: np.random.Generator
) -> Floats:
    """What the method wants least of, [N]: the prompts with the lowest scores are selected.

    - ``nearest``: |p̂ − τ|. PACED-RL, arXiv 2602.12642.
    - ``uniform``: times drawn so far. With random ties these are shuffled epochs: nobody is drawn twice before
      everybody was drawn once, whatever the batch size.
    - ``thompson``: |p − τ| with p drawn from the prompt's Beta posterior. MoPPS, arXiv 2507.04632.
    - ``learnability``: −E[p(1 − p)] under the posterior; −p̂(1 − p̂) where there is only a point estimate. The
      criterion of LILO (Foster et al., 2025), from an estimate in place of extra rollouts.
    - ``noise``: uniform noise, drawn anew each step: the control for ``nearest``.

    Raises ValueError when an estimate the method needs is NaN.
    """
    if method in ("nearest", "thompson", "learnability") and np.isnan(beliefs.mean_N).any():
        raise ValueError("an accuracy estimate is NaN")
    match method:
        case "nearest":
            return np.abs(beliefs.mean_N - target)
        case "uniform":
            return visits_N.astype(np.float64)
        case "thompson":
            return np.abs(beliefs.draw(rng) - target)
        case "learnability":
            return -beliefs.learnability()
        case "noise":
            return rng.random(len(visits_N))


def lowest(score_N: Floats, count: int, rng: np.random.Generator) -> Indices:
    """The ``count`` prompts with the lowest scores, in random order, ties broken at random; O(N).

    The papers do not say how ties are broken: at random, a fresh estimator, which knows nothing, selects uniformly.

    Raises ValueError when there are fewer than ``count`` prompts.
    """
    if count > len(score_N):
        raise ValueError(f"cannot select {count} prompts from {len(score_N)}")
    shuffled = rng.permutation(len(score_N))
    best = np.argpartition(score_N[shuffled], count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    chosen: Indices = rng.permutation(shuffled[best])
    return chosen


def rested(last_used_N: Indices, step: int, cooldown_steps: int, at_least: int, rng: np.random.Generator) -> Indices:
    """Prompts not used in the last ``cooldown_steps`` steps.

    Should that leave fewer than ``at_least``, those that have rested longest join them, ties broken at random: a
    cooldown never starves the batch.
    """
    free = np.flatnonzero(last_used_N < step - cooldown_steps)
    missing = at_least - len(free)
    if missing <= 0:
        return free
    resting = rng.permutation(np.flatnonzero(last_used_N >= step - cooldown_steps))
    longest = resting[np.argsort(last_used_N[resting], kind="stable")[:missing]]
    return np.concatenate([free, longest])


def select(
    score_N: Floats,
    last_used_N: Indices,
    *,
    step: int,
    count: int,
    explore_fraction: float,
    cooldown_steps: int,
    rng: np.random.Generator,
) -> Indices:
    """``count`` distinct prompts: a uniform share of ``explore_fraction``, the rest those with the lowest scores.

    The explored share is rounded to the nearest whole number of prompts.
    """
    candidates = rested(last_used_N, step, cooldown_steps, count, rng)
    explored = round(count * explore_fraction)
    greedy = candidates[lowest(score_N[candidates], count - explored, rng)]
    others = np.setdiff1d(candidates, greedy, assume_unique=True)
    return np.concatenate([greedy, rng.choice(others, size=explored, replace=False)])


def uninformative(rewards: Sequence[float]) -> str | None:
    """Why a group gives no group-relative gradient: ``all_right``, ``all_wrong``, ``all_equal`` (partial rewards) or
    ``unjudged`` (fewer than two rewards); None when it does.

    The filter of dynamic sampling, DAPO, arXiv 2503.14476. ``rewards`` are raw, of the judged completions.
    """
    if len(rewards) < 2:
        return "unjudged"
    low, high = min(rewards), max(rewards)
    if low < high:
        return None
    return "all_right" if low >= 1.0 else "all_wrong" if high <= 0.0 else "all_equal"


def most_learnable(rewards_P: Sequence[Sequence[float]], count: int) -> list[int]:
    """Indices of the ``count`` groups with the largest variance of reward, in their order; ties go to the earlier ones.

    LILO (Foster et al., 2025, "Learning to Reason at the Frontier of Learnability"), whose p̄(1 − p̄) this is for rewards
    of 0 and 1; with partial rewards a group of equal ones is not learnable, whatever they are. Every group needs a
    reward.
    """
    variance = np.array([np.var(rewards) for rewards in rewards_P])
    return sorted(np.argsort(-variance, kind="stable")[:count].tolist())


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
