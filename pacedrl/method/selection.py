"""Selection: which prompts to sample next, which groups to keep, which past completions to replay."""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.beliefs import AccuracyEstimator
from pacedrl.method.estimator import Floats, Indices, Rollouts, Rows

SelectionMethod = Literal["nearest", "uniform", "thompson", "learnability", "mapp", "greso", "noise"]

NEVER = -(2**40)
"""Value of ``last_used_N`` for a prompt that was never used."""
FULL_REWARD = 1.0
"""Reward of a correct completion. Only correct completions are candidates for replay."""
QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
"""Quantiles of the replay buffer's ages and priorities that are logged."""


def selection_score(
    method: SelectionMethod,
    estimator: AccuracyEstimator,
    rows: Rows,
    epoch_N: Indices,
    target: float,
    group_size: int,
    rng: np.random.Generator,
) -> Floats:
    """Return a score for each prompt in ``rows``; the prompts with the lowest scores are selected.

    - ``nearest``: |p̂ − τ| (PACED-RL, arXiv 2602.12642).
    - ``uniform``: ``epoch_N``, the number of visits. With random tie-breaking this gives shuffled epochs: at any batch
      size, no prompt is drawn twice before all were drawn once.
    - ``greso``: ``epoch_N``, the epoch in which a prompt is sampled next (`ZeroVarianceSkips`).
    - ``thompson``: |p − τ| with p drawn from the posterior (MoPPS, arXiv 2507.04632; `AccuracyEstimator.draw`).
    - ``learnability``: −E[p(1 − p)] under the posterior, or −p̂(1 − p̂) for a point estimate. This is the criterion of
      LILO (Foster et al., 2025), computed from an estimate instead of extra rollouts.
    - ``mapp``: −E[1 − p^G − (1 − p)^G], where the expectation is the probability that the rewards of a group of G =
      ``group_size`` completions differ (MaPP, which we know from a summary only).
    - ``noise``: uniform noise that is redrawn at each step, a control for ``nearest``.

    Raises ValueError if the method needs estimates and one of them is NaN.
    """
    match method:
        case "nearest":
            return np.abs(_known(estimator.mean(rows)) - target)
        case "uniform" | "greso":
            return epoch_N[rows].astype(np.float64)
        case "thompson":
            return np.abs(_known(estimator.draw(rng, rows)) - target)
        case "learnability":
            return -_known(estimator.beliefs(rows).learnability())
        case "mapp":
            return -_known(estimator.beliefs(rows).mixed(group_size))
        case "noise":
            return rng.random(len(epoch_N[rows]))


def _known(values_P: Floats) -> Floats:
    if np.isnan(values_P).any():
        raise ValueError("an accuracy estimate is NaN")
    return values_P


def lowest(score_N: Floats, count: int, rng: np.random.Generator) -> Indices:
    """Return the ``count`` prompts with the lowest scores in random order, with ties broken at random, in O(N).

    The papers do not say how ties are broken. Random tie-breaking makes a new estimator, which knows nothing, select
    uniformly.

    Raises ValueError if there are fewer than ``count`` prompts.
    """
    if count > len(score_N):
        raise ValueError(f"cannot select {count} prompts from {len(score_N)}")
    shuffled = rng.permutation(len(score_N))
    best = np.argpartition(score_N[shuffled], count - 1)[:count] if count else np.empty(0, dtype=np.int64)
    chosen: Indices = rng.permutation(shuffled[best])
    return chosen


def rested(last_used_N: Indices, step: int, cooldown_steps: int, at_least: int, rng: np.random.Generator) -> Indices:
    """Return the prompts that were not used in the last ``cooldown_steps`` steps.

    If fewer than ``at_least`` remain, the prompts that have rested longest are added, with ties broken at random, so
    that a cooldown cannot leave a batch short.
    """
    free = np.flatnonzero(last_used_N < step - cooldown_steps)
    missing = at_least - len(free)
    if missing <= 0:
        return free
    resting = rng.permutation(np.flatnonzero(last_used_N >= step - cooldown_steps))
    longest = resting[np.argsort(last_used_N[resting], kind="stable")[:missing]]
    return np.concatenate([free, longest])


def select(
    score_P: Floats,
    last_used_P: Indices,
    *,
    step: int,
    count: int,
    explored: int,
    cooldown_steps: int,
    rng: np.random.Generator,
) -> Indices:
    """Return the places of ``count`` distinct prompts: ``explored`` of them drawn uniformly, the rest by score."""
    free = rested(last_used_P, step, cooldown_steps, count, rng)
    greedy = free[lowest(score_P[free], count - explored, rng)]
    if explored == 0:
        return greedy
    others = np.setdiff1d(free, greedy, assume_unique=True)
    return np.concatenate([greedy, rng.choice(others, size=explored, replace=False)])


def last_solved(solved_N: NDArray[np.bool_], last_used_N: Indices, count: int, rng: np.random.Generator) -> Indices:
    """Return at most ``count`` prompts that were solved when last used, those used longest ago first.

    Training on a few of them keeps skills that selection by difficulty no longer visits (ours).
    """
    solved = rng.permutation(np.flatnonzero(solved_N))
    oldest: Indices = solved[np.argsort(last_used_N[solved], kind="stable")[:count]]
    return oldest


def uninformative(rewards: Sequence[float]) -> str | None:
    """Return why a group has no group-relative gradient, or None if it has one.

    The reasons are ``all_right``, ``all_wrong``, ``all_equal`` (equal partial rewards) and ``unjudged`` (fewer than two
    rewards). This is the filter of dynamic sampling (DAPO, arXiv 2503.14476). ``rewards`` are the raw rewards of the
    judged completions.
    """
    if len(rewards) < 2:
        return "unjudged"
    low, high = min(rewards), max(rewards)
    if low < high:
        return None
    return "all_right" if low >= 1.0 else "all_wrong" if high <= 0.0 else "all_equal"


def most_learnable(rewards_P: Sequence[Sequence[float]], count: int) -> list[int]:
    """Return the indices of the ``count`` groups with the largest reward variance in ascending order.

    Of groups with equal variance, earlier ones are kept. Every group needs at least one reward. For rewards of 0 and 1
    the variance is LILO's p̄(1 − p̄) (Foster et al., 2025, "Learning to Reason at the Frontier of Learnability"). It is
    also 0 for equal partial rewards, from which nothing can be learned.
    """
    variance = np.array([np.var(rewards) for rewards in rewards_P])
    return sorted(np.argsort(-variance, kind="stable")[:count].tolist())


@dataclass(frozen=True)
class ReplayEntry:
    """A correct completion kept for later training.

    ``logprobs`` are the behaviour policy's log-probabilities of the tokens, ``step`` is the step of that policy, and
    ``priority`` is |p̂ − p̄| of its prompt in that step.
    """

    key: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reward: float
    step: int
    priority: float


def replay_candidates(
    judged: Rollouts, priority: Mapping[str, float], policy_step: Mapping[str, int], oldest: int
) -> list[ReplayEntry]:
    """Return the correct completions that have tokens, with the ``priority`` and ``policy_step`` of their prompts.

    Completions of policies before step ``oldest`` are left out: they would only push others out of the buffer.
    """
    if judged.token_ids is None:
        return []
    completions = zip(judged.keys, np.asarray(judged.reward_B), judged.token_ids, judged.logprobs, strict=True)
    return [
        ReplayEntry(key, tuple(ids), tuple(logprobs), float(reward), policy_step[key], priority[key])
        for key, reward, ids, logprobs in completions
        if reward >= FULL_REWARD and ids is not None and policy_step[key] >= oldest
    ]


class ReplayBuffer:
    """Replay buffer prioritised by accuracy estimation error (PACED-RL, arXiv 2602.12642).

    In each step, the ``admit`` correct completions with the largest priority enter a buffer of size ``capacity``. The
    paper does not specify eviction, reuse and mixing. We evict the oldest entries when the buffer is full, train on all
    entries together with the next fresh batch, and drop entries older than ``max_age`` steps. With the paper's sizes,
    64 of 128, a completion is replayed at most twice as long as every step fills its quota. We do not keep the largest
    priorities, because they come from different φ: the buffer would fill with outdated estimation errors.

    Args:
        capacity: maximum number of completions; 0 turns replay off.
        admit: maximum number of completions that enter in one step.
        max_age: age in steps above which entries are dropped.
    """

    def __init__(self, capacity: int = 128, admit: int = 64, max_age: int = 8) -> None:
        self.admit = min(admit, capacity)
        self.max_age = max_age
        self.entries: deque[ReplayEntry] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, correct: Iterable[ReplayEntry]) -> int:
        """Add the entries with the largest priority (of equal ones, the earlier) and return how many were added."""
        ranked = sorted(correct, key=lambda entry: -entry.priority)[: self.admit]
        # The largest priority is added last, so that the smallest leave first.
        self.entries.extend(reversed(ranked))
        return len(ranked)

    def draw(self, step: int) -> list[ReplayEntry]:
        """Drop entries older than ``max_age`` steps and return the others in the order of their admission."""
        kept = [entry for entry in self.entries if step - entry.step <= self.max_age]
        self.entries.clear()
        self.entries.extend(kept)
        return kept

    def metrics(self, step: int) -> dict[str, float]:
        """Return ``replay/size``, and mean and ``QUANTILES`` of ages (in steps) and priorities, NaN if it is empty."""
        ages = [float(step - entry.step) for entry in self.entries]
        priorities = [entry.priority for entry in self.entries]
        return {"replay/size": float(len(self.entries))} | _spread("age", ages) | _spread("priority", priorities)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries as plain values."""
        return {"entries": [asdict(entry) for entry in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.entries.clear()
        for entry in state["entries"]:
            sequences = {name: tuple(entry[name]) for name in ("token_ids", "logprobs")}
            self.entries.append(ReplayEntry(**{**entry, **sequences}))


def _spread(name: str, values: list[float]) -> dict[str, float]:
    points = np.quantile(values, list(QUANTILES.values())).tolist() if values else [math.nan] * len(QUANTILES)
    quantiles = {f"replay/{name}_{quantile}": point for quantile, point in zip(QUANTILES, points, strict=True)}
    return {f"replay/{name}_mean": float(np.mean(values)) if values else math.nan} | quantiles
