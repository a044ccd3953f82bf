"""The difficulty scheduler: uses log Z as a running estimate of every prompt's accuracy to select, weigh and replay.

It identifies prompts by key and takes rewards and log-ratios as plain arrays. It does not depend on how the policy is
sampled, sharded or trained, so any trainer that accepts one advantage per completion can use it:

    scheduler = DifficultyScheduler(keys, embeddings)
    for _ in range(steps):
        chosen = scheduler.select(128)
        ...                                     # sample G completions of each, verify them
        advantage_B = scheduler.advantage(keys_B, reward_B)
        ...                                     # train with trajectory_balance(logprobs, old, mask, advantage_B)
        metrics = scheduler.observe(Rollouts(keys_B, reward_B, log_ratio_B))
"""

import math
from collections.abc import Collection, Sequence
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
    Rollouts,
    calibration_metrics,
    pool_histogram,
)
from pacedrl.method.leases import Leases
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
"""Reward of a correct completion. Only correct completions are candidates for replay."""
PRIOR_RANGE = (0.01, 0.99)
"""Range to which log Z's unbounded estimate is clipped before it becomes the mean of a Beta distribution."""


class DifficultyScheduler:
    """Selects prompts, computes log Z and advantages, learns from the rollouts, and replays past completions.

    Args:
        keys: one distinct, stable key per prompt.
        embeddings_NH: the prompts' embeddings in the order of ``keys``, floating-point and constant over the run; None
            if neither the estimator nor the trainer needs log Z.
        learner: the partition function with its optimiser; by default one with default settings and ``beta``.
        beta: temperature β of the objective; ignored if ``learner`` is given.
        replay: the replay buffer; by default one with the paper's settings.
        selection: how prompts are selected (`pacedrl.method.selection.selection_score`); the paper's is ``nearest``.
        estimator: the source of accuracy estimates. ``partition``: β·log Z (the paper). ``counts``: the prompt's own
            discounted results with a flat prior (MoPPS). ``combined``: the same results with β·log Z as the prior's
            mean (ours). ``oracle``: the accuracies passed to `set_truth`. ``none``: no estimates.
        target_accuracy: target accuracy τ in [0, 1].
        explore_fraction: share of a batch selected uniformly, in [0, 1].
        cooldown_steps: number of steps that a prompt rests after use.
        prior_strength: for ``combined``, the number of completions that log Z's estimate is worth, > 0; None learns it.
        discount: for ``counts`` and ``combined``, the factor by which older results are multiplied at each visit, in
            [0, 1].
        rescore_share: share of the prompts whose log Z is recomputed after each fit, in (0, 1]. Values below 1 save
            time with very many prompts, whose estimates are then up to 1/share steps old (`PartitionScores`).
        seed: seed of selection and dropout. Random numbers are derived from (seed, step), so there is no generator
            state to save.

    Raises ValueError for duplicate keys, missing embeddings, or a target accuracy outside [0, 1].
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
        lease_steps: int = 8,
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
        self.leases = Leases(lease_steps)
        self.seed = seed
        self.step = 0
        self.last_used_N: Indices = np.full(len(self.keys), NEVER, dtype=np.int64)
        self.visits_N: Indices = np.zeros(len(self.keys), dtype=np.int64)
        self._truth_N: Floats = np.full(len(self.keys), np.nan)

    def beliefs(self) -> Beliefs:
        """Return the estimator's current beliefs about every prompt's accuracy."""
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
        """Return p̂ of every prompt, shape [N]; with the default estimator this is β·log Z_φ with the current φ."""
        return self.beliefs().mean_N

    def accuracy_estimate(self, keys: Sequence[str]) -> Floats:
        """Return p̂ of the given prompts in their order; a key may recur. Raises KeyError for an unknown key."""
        return self.accuracy_estimates()[self._rows(keys)]

    def pool(self) -> dict[str, Any] | None:
        """Return the histogram of all estimates (`pacedrl.method.estimator.pool_histogram`); None without estimates."""
        return pool_histogram(self.accuracy_estimates())

    def estimate_strength(self, keys: Sequence[str]) -> Floats:
        """Return the number of completions that p̂ is worth for each given prompt: the posterior's α + β.

        It is infinite for point estimates.
        """
        return self.beliefs().strength_N[self._rows(keys)]

    def log_z(self, keys: Sequence[str]) -> Tensor:
        """Return log Z_φ of the given prompts: float32 [len(keys)] on the CPU, without gradient."""
        return torch.from_numpy(self._scores().of(self._rows(keys)) / self._scores().learner.beta).float()

    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor:
        """Return A = r/β − log Z_φ(x) of each completion: float32 [B] on the CPU."""
        reward = torch.as_tensor(np.asarray(reward_B, dtype=np.float32))
        return trajectory_balance_advantage(reward, self.log_z(keys), self._scores().learner.beta)

    def set_truth(self, accuracy_N: ArrayLike) -> None:
        """Set the true accuracies of all prompts, in the order of ``keys``, for the estimator ``oracle``."""
        self._truth_N = np.asarray(accuracy_N, dtype=np.float64)
        if self._truth_N.shape != (len(self.keys),):
            raise ValueError(f"expected {len(self.keys)} accuracies, got shape {self._truth_N.shape}")

    def select(self, count: int) -> list[str]:
        """Return the keys of ``count`` distinct prompts to sample next, without leasing them.

        Prompts under lease are left out; if too few others remain, the longest leased are added. This changes no state:
        repeated calls return the same keys until `take` or `observe` is called, so an interrupted step can be repeated.
        Raises ValueError if there are fewer than ``count`` prompts.
        """
        # Within a step the number of leases only grows, so that no two batches get the same random numbers.
        drawn = [len(self.leases)] if self.leases else []
        rng = np.random.default_rng([self.seed, self.step, *drawn])
        score_N = selection_score(self.selection, self.beliefs(), self.visits_N, self.target_accuracy, rng)
        allowed = self.leases.free(len(self.keys), at_least=count)
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

    def take(self, count: int) -> list[str]:
        """Select ``count`` prompts and lease them, so that the next call takes others; see "Asynchronous training"."""
        keys = self.select(count)
        self.leases.take(self._rows(keys), self.step)
        return keys

    def leased(self) -> list[str]:
        """Return the keys of the prompts under lease, the longest leased first."""
        return [self.keys[row] for row in self.leases.rows]

    def release(self, keys: Collection[str]) -> None:
        """End the leases of these prompts as if they had not been taken: nothing will be observed for them."""
        self.leases.close(self._rows(keys))

    def replay(self) -> list[ReplayEntry]:
        """Return past completions to train on together with this step's fresh ones."""
        return self.replay_buffer.draw(self.step)

    def observe(self, fresh: Rollouts, replayed: Rollouts | None = None) -> dict[str, float]:
        """Learn from one step's rollouts: fit log Z, fill the replay buffer, count the visits, advance the step.

        Estimates are compared with observations before they are fitted to them, so the calibration metrics measure
        genuine predictions. They are NaN if no completion could be judged. ``replayed`` only takes part in the fit.
        Omit it to keep replayed completions out of log Z: all of them are correct, so they bias it upwards.

        Returns the calibration and replay metrics, ``loss/partition``, ``selection/coverage`` (the share of prompts
        used so far), ``estimator/prior_strength`` and ``estimator/stale``.
        """
        metrics = dict.fromkeys((*CALIBRATION, "loss/partition"), math.nan) | {"replay/admitted": 0.0}
        judged = fresh.judged()
        if len(judged.keys) > 0:
            results = judged.rewards_by_prompt()
            observed_P = np.array([np.mean(rewards) for rewards in results.values()])
            estimate_P = self.accuracy_estimate(list(results))
            metrics |= calibration_metrics(estimate_P, observed_P)
            priority = dict(zip(results, np.abs(estimate_P - observed_P).tolist(), strict=True))
            metrics["replay/admitted"] = float(self.replay_buffer.add(self._replay_candidates(judged, priority)))
            self._count(results)
            parts = [judged] if replayed is None else [judged, replayed.judged()]
            metrics["loss/partition"] = math.nan if self.scores is None else self._fit(self.scores, parts)
        used = np.unique(self._rows(fresh.keys))
        self.last_used_N[used] = self.step
        self.visits_N[used] += 1
        self.step += 1
        self.leases.close(used)
        self.leases.expire(self.step)
        return metrics | self._state_metrics()

    def state_dict(self) -> State:
        """Return all state that changes during a run, as tensors and plain values in the order of ``keys``."""
        return {
            "step": self.step,
            "keys": self.keys,
            "last_used": torch.from_numpy(self.last_used_N.copy()),
            "visits": torch.from_numpy(self.visits_N.copy()),
            "leases": self.leases.state_dict(),
            "right": torch.from_numpy(self.counts.right_N.copy()),
            "wrong": torch.from_numpy(self.counts.wrong_N.copy()),
            "prior_strength": self.prior_strength.state_dict(),
            "learner": None if self.learner is None else self.learner.state_dict(),
            "scores": None if self.scores is None else self.scores.state_dict(),
            "replay": self.replay_buffer.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore the state that `state_dict` returned. Prompts may have been reordered or added since then.

        Added prompts start with the smallest number of visits in the state, so that uniform selection does not dwell on
        them. Raises ValueError if the state contains prompts that this scheduler does not have.
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
        self.leases.load_state_dict(state["leases"], rows)
        self.counts.right_N[:] = self.counts.wrong_N[:] = 0.0
        self.counts.right_N[rows], self.counts.wrong_N[rows] = state["right"].numpy(), state["wrong"].numpy()
        self.prior_strength.load_state_dict(state["prior_strength"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        if self.scores is not None:
            self.scores.load_state_dict(state["scores"], rows)
        self.replay_buffer.load_state_dict(state["replay"])

    def partition_accuracy(self) -> Floats:
        """Return β·log Z_φ of every prompt with any estimator; it is recomputed only after a fit.

        Raises ValueError if the scheduler has no log Z.
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
        """Update the prior's strength by comparing the prior with the results, then add the results to the counts."""
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
        """Fit log Z to the completions that have a target; return the loss, or NaN if none has one."""
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
        """Return the share of prompts whose estimate rests mostly on evidence older than ``STALE_STEPS`` steps.

        The age of β·log Z is the time since it was computed, since a fit on other prompts updates it as well. It is 0
        if ``rescore_share`` is 1. The age of counts is the time since the prompt's last visit; prompts without a visit
        are not stale (``selection/coverage`` reports them). The estimator ``combined`` uses the age of whichever of the
        two has the larger weight.
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
