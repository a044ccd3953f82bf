"""The difficulty scheduler: log Z as a live estimate of every prompt's accuracy, and what follows from it.

It knows prompts by key; rewards and log-ratios come in as plain arrays. Nothing of it depends on how the policy is
sampled, sharded or trained, so it serves any trainer that can take one advantage a completion:

    scheduler = DifficultyScheduler(keys, embeddings)
    for _ in range(steps):
        chosen = scheduler.select(128)
        ...                                     # sample G completions of each, verify them
        advantage_B = scheduler.advantage(keys_B, reward_B)
        ...                                     # train with trajectory_balance(logprobs, old, mask, advantage_B)
        metrics = scheduler.observe(Rollouts(keys_B, reward_B, log_ratio_B))
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pacedrl.method.estimator import (
    CALIBRATION,
    FLAT_MEAN,
    FLAT_STRENGTH,
    STALE_STEPS,
    Beliefs,
    DiscountedCounts,
    Floats,
    PriorStrength,
    calibration_metrics,
    pool_histogram,
)
from pacedrl.method.objectives import trajectory_balance_advantage
from pacedrl.method.partition import LogPartition, PartitionLearner, PartitionScores
from pacedrl.method.selection import (
    NEVER,
    Indices,
    ReplayBuffer,
    ReplayEntry,
    SelectionMethod,
    select,
    selection_score,
)

State = dict[str, Any]
EstimatorName = Literal["partition", "counts", "combined", "oracle", "none"]

FULL_REWARD = 1.0
"""The reward that makes a completion correct, and so a candidate for replay."""
PRIOR_RANGE = (0.01, 0.99)
"""log Z's estimate, which is not confined to [0, 1], is clipped to this before it becomes the mean of a Beta."""


@dataclass(frozen=True)
class Rollouts:
    """Completions of one step, flat, one entry a completion.

    ``reward_B`` is raw, in [0, 1]; NaN marks a completion that could not be judged: it is left out of everything.
    ``log_ratio_B`` is Σ_t (log π_θ − log π_old), 0 unless given. ``token_ids`` and ``logprobs`` (behaviour, one a
    token) make correct completions candidates for replay; those with None, and all without them, are not.
    ``partition_reward_B`` is what log Z is fitted to where that is not the raw reward, NaN leaving a completion out of
    the fit: FlowRL's is z-scored, and its ``log_ratio_B`` is mean_t(log π_θ − log π_ref).
    """

    keys: Sequence[str]
    reward_B: ArrayLike
    log_ratio_B: ArrayLike = 0.0
    token_ids: Sequence[Sequence[int] | None] | None = None
    logprobs: Sequence[Sequence[float]] = field(default=())
    partition_reward_B: ArrayLike | None = None


class DifficultyScheduler:
    """Selects prompts, gives log Z and advantages, learns from what was observed, and replays.

    Args:
        keys: one stable key a prompt, all different.
        embeddings_NH: the prompts' embeddings in the order of ``keys``, float, constant over the run; None for an
            estimator and a trainer that do without log Z.
        learner: the partition function and its optimiser; one with the defaults and ``beta`` unless given.
        beta: temperature of the objective; read only where ``learner`` is not given.
        replay: the buffer; the paper's unless given.
        selection: which prompts come next (`pacedrl.method.selection.selection_score`); the paper's is ``nearest``.
        estimator: where accuracy estimates come from. ``partition``: β·log Z (the paper). ``counts``: the prompt's own
            discounted results on a flat prior (MoPPS). ``combined``: the same with β·log Z as the prior's mean (ours).
            ``oracle``: what `set_truth` was told. ``none``: nowhere.
        target_accuracy: τ in [0, 1].
        explore_fraction: share of a batch drawn uniformly, in [0, 1].
        cooldown_steps: steps a prompt rests after use.
        prior_strength: of ``combined``: how many completions log Z's estimate is worth, > 0; None: learned.
        discount: of ``counts`` and ``combined``: what is left of older results at each visit, in [0, 1].
        rescore_share: share of the prompts whose log Z is computed anew after each fit, in (0, 1]; below 1 the others'
            estimates are up to 1/share steps old, which is quicker where there are very many (`PartitionScores`).
        seed: of selection and dropout. Both are derived from (seed, step): there is no generator state to save.
    """

    def __init__(
        self,
        keys: Sequence[str],
        embeddings_NH: Tensor | None = None,
        *,
        learner: PartitionLearner | None = None,
        beta: float = 0.05,
        replay: ReplayBuffer | None = None,
        selection: SelectionMethod = "nearest",
        estimator: EstimatorName = "partition",
        target_accuracy: float = 0.5,
        explore_fraction: float = 0.0,
        cooldown_steps: int = 0,
        prior_strength: float | None = 4.0,
        discount: float = 0.5,
        rescore_share: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.keys = list(keys)
        self.index = {key: i for i, key in enumerate(self.keys)}
        if len(self.index) != len(self.keys):
            raise ValueError("prompt keys must be unique")
        if embeddings_NH is None and estimator in ("partition", "combined"):
            raise ValueError(f"the estimator '{estimator}' reads log Z, which needs embeddings_NH")
        if embeddings_NH is not None and len(embeddings_NH) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(embeddings_NH)} embeddings")
        if not 0.0 <= target_accuracy <= 1.0:
            raise ValueError(f"target_accuracy must lie in [0, 1], got {target_accuracy}")
        self.embeddings_NH = embeddings_NH
        self.learner = learner
        self.scores: PartitionScores | None = None
        if embeddings_NH is not None:
            self.learner = learner or PartitionLearner(LogPartition(embeddings_NH, beta).to(embeddings_NH.device))
            self.scores = PartitionScores(self.learner, embeddings_NH, rescore_share)
        self.replay_buffer = replay if replay is not None else ReplayBuffer()
        self.selection = selection
        self.estimator = estimator
        self.target_accuracy = target_accuracy
        self.explore_fraction = explore_fraction
        self.cooldown_steps = cooldown_steps
        self.prior_strength = PriorStrength(prior_strength)
        self.counts = DiscountedCounts(len(self.keys), discount)
        self.seed = seed
        self.step = 0
        self.last_used_N: Indices = np.full(len(self.keys), NEVER, dtype=np.int64)
        self.visits_N: Indices = np.zeros(len(self.keys), dtype=np.int64)
        self._truth_N: Floats = np.full(len(self.keys), np.nan)

    def beliefs(self) -> Beliefs:
        """What the estimator believes of every prompt's accuracy now."""
        point_N = np.full(len(self.keys), np.inf)
        match self.estimator:
            case "partition":
                return Beliefs(self.partition_accuracy(), point_N)
            case "counts":
                return self.counts.posterior(np.full(len(self.keys), FLAT_MEAN), FLAT_STRENGTH)
            case "combined":
                return self.counts.posterior(self.partition_accuracy().clip(*PRIOR_RANGE), self.prior_strength.value)
            case "oracle":
                return Beliefs(self._truth_N, point_N)
            case "none":
                return Beliefs(np.full(len(self.keys), np.nan), point_N)

    def accuracy_estimates(self) -> Floats:
        """p̂ of every prompt, shape [N]; β·log Z_φ with the current φ unless another estimator was asked for."""
        return self.beliefs().mean_N

    def accuracy_estimate(self, keys: Sequence[str]) -> Floats:
        """p̂ of the prompts named, in their order (a key may recur). Raises KeyError for an unknown key."""
        return self.accuracy_estimates()[self._rows(keys)]

    def pool(self) -> dict[str, Any] | None:
        """Histogram of all prompts' estimates (`pacedrl.method.estimator.pool_histogram`); None without estimates."""
        return pool_histogram(self.accuracy_estimates())

    def estimate_strength(self, keys: Sequence[str]) -> Floats:
        """How many completions p̂ is worth, of the prompts named: α + β of the posterior; infinite for a point."""
        return self.beliefs().strength_N[self._rows(keys)]

    def log_z(self, keys: Sequence[str]) -> Tensor:
        """log Z_φ of the prompts named, float32 [len(keys)], on the CPU, without gradient."""
        return torch.from_numpy(self._scores().of(self._rows(keys)) / self._scores().learner.beta).float()

    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor:
        """A = r/β − log Z_φ(x) of each completion, float32 [B], on the CPU."""
        reward = torch.as_tensor(np.asarray(reward_B, dtype=np.float32))
        return trajectory_balance_advantage(reward, self.log_z(keys), self._scores().learner.beta)

    def set_truth(self, accuracy_N: ArrayLike) -> None:
        """True accuracies of all prompts, in the order of ``keys``, for the estimator ``oracle``."""
        self._truth_N = np.asarray(accuracy_N, dtype=np.float64)
        if self._truth_N.shape != (len(self.keys),):
            raise ValueError(f"expected {len(self.keys)} accuracies, got shape {self._truth_N.shape}")

    def select(self, count: int, exclude: Collection[str] = ()) -> list[str]:
        """Keys of the ``count`` distinct prompts to sample next, none of them among ``exclude``.

        Changes nothing: until `observe` ends the step, asking again gives the same answer, so a step that was
        interrupted can be begun anew. Raises ValueError if there are not as many prompts.
        """
        rng = np.random.default_rng([self.seed, self.step, len(exclude)] if exclude else [self.seed, self.step])
        score_N = selection_score(self.selection, self.beliefs(), self.visits_N, self.target_accuracy, rng)
        taken_N = np.zeros(len(self.keys), dtype=bool)
        taken_N[self._rows(exclude)] = True
        allowed = np.flatnonzero(~taken_N)
        chosen = select(
            score_N[allowed],
            self.last_used_N[allowed],
            step=self.step,
            count=count,
            explore_fraction=self.explore_fraction,
            cooldown_steps=self.cooldown_steps,
            rng=rng,
        )
        return [self.keys[i] for i in allowed[chosen]]

    def replay(self) -> list[ReplayEntry]:
        """Past completions to train on beside this step's fresh ones."""
        return self.replay_buffer.draw(self.step)

    def observe(self, fresh: Rollouts, replayed: Rollouts | None = None) -> dict[str, float]:
        """Learn from one step's rollouts: fit log Z, admit to replay, mark the prompts as used, advance the step.

        The estimate is compared with the observation before it is fitted to it, so the calibration metrics are of
        honest predictions; where nothing could be judged they are NaN. ``replayed`` takes part in the fit only; leave
        it out to keep replay away from log Z (all replayed completions are correct, so they push it upwards).
        """
        metrics = dict.fromkeys((*CALIBRATION, "loss/partition"), math.nan) | {"replay/admitted": 0.0}
        judged = _judged(fresh)
        if len(judged.keys) > 0:
            results = _results(judged)
            observed_P = np.array([np.mean(rewards) for rewards in results.values()])
            estimate_P = self.accuracy_estimate(list(results))
            metrics |= calibration_metrics(estimate_P, observed_P)
            priority = dict(zip(results, np.abs(estimate_P - observed_P).tolist(), strict=True))
            metrics["replay/admitted"] = float(self.replay_buffer.add(self._replay_candidates(judged, priority)))
            self._count(results)
            parts = [judged] if replayed is None else [judged, _judged(replayed)]
            metrics["loss/partition"] = math.nan if self.scores is None else self._fit(self.scores, parts)
        used = np.unique(self._rows(fresh.keys))
        self.last_used_N[used] = self.step
        self.visits_N[used] += 1
        self.step += 1
        return metrics | self._state_metrics()

    def state_dict(self) -> State:
        """Everything that changes over a run: tensors and plain values, keyed by prompt."""
        return {
            "step": self.step,
            "keys": self.keys,
            "last_used": torch.from_numpy(self.last_used_N.copy()),
            "visits": torch.from_numpy(self.visits_N.copy()),
            "right": torch.from_numpy(self.counts.right_N.copy()),
            "wrong": torch.from_numpy(self.counts.wrong_N.copy()),
            "prior_strength": self.prior_strength.state_dict(),
            "learner": None if self.learner is None else self.learner.state_dict(),
            "scores": None if self.scores is None else self.scores.state_dict(),
            "replay": self.replay_buffer.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave. Prompts may have been reordered or added since, but not removed.

        Added prompts count as drawn as often as the least drawn one, lest uniform selection dwell on them. Raises
        ValueError when the state knows prompts that this scheduler does not.
        """
        gone = [key for key in state["keys"] if key not in self.index]
        if gone:
            raise ValueError(f"the state holds {len(gone)} prompts that are not in the dataset, e.g. key {gone[0]}")
        rows = self._rows(state["keys"])
        self.step = state["step"]
        self.last_used_N[:] = NEVER
        self.last_used_N[rows] = state["last_used"].numpy()
        self.visits_N[:] = int(state["visits"].min())
        self.visits_N[rows] = state["visits"].numpy()
        self.counts.right_N[:] = self.counts.wrong_N[:] = 0.0
        self.counts.right_N[rows], self.counts.wrong_N[rows] = state["right"].numpy(), state["wrong"].numpy()
        self.prior_strength.load_state_dict(state["prior_strength"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"], rows)
        self.replay_buffer.load_state_dict(state["replay"])

    def partition_accuracy(self) -> Floats:
        """β·log Z_φ of every prompt, whatever the estimator; recomputed only after a fit.

        Raises ValueError where there is no log Z.
        """
        return self._scores().all()

    def _scores(self) -> PartitionScores:
        if self.scores is None:
            raise ValueError("this scheduler was made without embeddings, so it has no log Z")
        return self.scores

    def _rows(self, keys: Collection[str]) -> Indices:
        return np.fromiter((self.index[key] for key in keys), dtype=np.int64, count=len(keys))

    def _replay_candidates(self, judged: Rollouts, priority: dict[str, float]) -> list[ReplayEntry]:
        if judged.token_ids is None:
            return []
        rows = zip(judged.keys, np.asarray(judged.reward_B), judged.token_ids, judged.logprobs, strict=True)
        return [
            ReplayEntry(key, tuple(ids), tuple(logprobs), float(reward), self.step, priority[key])
            for key, reward, ids, logprobs in rows
            if reward >= FULL_REWARD and ids is not None
        ]

    def _count(self, results: dict[str, list[float]]) -> None:
        """Results into the counts, and into the prior's strength by what the prior said before."""
        rows = self._rows(results)
        right_P = np.array([np.sum(rewards) for rewards in results.values()])
        trials_P = np.array([float(len(rewards)) for rewards in results.values()])
        if self.estimator == "combined":
            variance_P = np.array(
                [np.var(rewards, ddof=1) if len(rewards) > 1 else 0.0 for rewards in results.values()]
            )
            prior_P = self._scores().of(rows).clip(*PRIOR_RANGE)
            self.prior_strength.observe(prior_P, right_P / trials_P, variance_P, trials_P)
        self.counts.observe(rows, right_P, trials_P)

    def _fit(self, scores: PartitionScores, parts: list[Rollouts]) -> float:
        """Fit log Z to what has a target; NaN when nothing has."""
        rows = np.concatenate([self._rows(part.keys) for part in parts])
        target_B = np.concatenate([np.asarray(part.partition_reward_B) for part in parts])
        log_ratio_B = np.concatenate([np.asarray(part.log_ratio_B) for part in parts])
        known = ~np.isnan(target_B)
        if not known.any():
            return math.nan
        loss = scores.learner.fit(
            scores.embeddings_NH[torch.from_numpy(rows[known])],
            torch.from_numpy(target_B[known]).float(),
            torch.from_numpy(log_ratio_B[known]).float(),
            seed=int(np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0]),
        )
        scores.fitted(np.unique(rows))
        return loss

    def _state_metrics(self) -> dict[str, float]:
        return self.replay_buffer.metrics(self.step) | {
            "selection/coverage": float((self.last_used_N > NEVER).mean()),
            "estimator/prior_strength": self.prior_strength.value if self.estimator == "combined" else math.nan,
            "estimator/stale": self._stale_share(),
        }

    def _stale_share(self) -> float:
        """Share of the prompts whose estimate rests, by more than half, on what is over ``STALE_STEPS`` steps old.

        β·log Z is as old as its computation: 0 unless ``rescore_share`` is below 1, for a fit on other prompts brings
        it up to date too. Counts are as old as the prompt's last visit; where there was none they are not stale, but
        nothing (``selection/coverage``). Of the two combined, whichever weighs more.
        """
        since_visit_N = self.step - 1 - self.last_used_N
        counts_N = np.where(self.last_used_N == NEVER, 0, since_visit_N)
        match self.estimator:
            case "none":
                return math.nan
            case "oracle":
                return 0.0
            case "counts":
                age_N = counts_N
            case _:
                age_N = np.minimum(self._scores().fits_ago(), since_visit_N).clip(max=self.step)
                if self.estimator == "combined":
                    own_N = self.counts.right_N + self.counts.wrong_N > self.prior_strength.value
                    age_N = np.where(own_N, counts_N, age_N)
        return float((age_N > STALE_STEPS).mean())


def _judged(rollouts: Rollouts) -> Rollouts:
    """The same rollouts without those that could not be judged; rewards checked, log-ratios broadcast."""
    reward_B = np.asarray(rollouts.reward_B, dtype=np.float64)
    if len(reward_B) != len(rollouts.keys):
        raise ValueError(f"{len(rollouts.keys)} keys but {len(reward_B)} rewards")
    log_ratio_B = np.broadcast_to(np.asarray(rollouts.log_ratio_B, dtype=np.float64), reward_B.shape)
    kept = np.flatnonzero(~np.isnan(reward_B)).tolist()
    if ((reward_B[kept] < 0) | (reward_B[kept] > 1)).any():
        raise ValueError("rewards must lie in [0, 1]: raw, not z-scored")
    ids, shaped = rollouts.token_ids, rollouts.partition_reward_B
    return Rollouts(
        [rollouts.keys[i] for i in kept],
        reward_B[kept],
        log_ratio_B[kept],
        None if ids is None else [ids[i] for i in kept],
        () if ids is None else [rollouts.logprobs[i] for i in kept],
        (reward_B if shaped is None else np.asarray(shaped, dtype=np.float64))[kept],
    )


def _results(judged: Rollouts) -> dict[str, list[float]]:
    """The rewards of each prompt's judged completions; prompts in order of first appearance."""
    rewards: dict[str, list[float]] = {}
    for key, reward in zip(judged.keys, np.asarray(judged.reward_B), strict=True):
        rewards.setdefault(key, []).append(float(reward))
    return rewards
