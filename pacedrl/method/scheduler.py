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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pacedrl.method.estimator import CALIBRATION, Floats, calibration_metrics
from pacedrl.method.objectives import trajectory_balance_advantage
from pacedrl.method.partition import LogPartition, PartitionLearner
from pacedrl.method.replay import ReplayBuffer, ReplayEntry
from pacedrl.method.selection import NEVER, select

State = dict[str, Any]

FULL_REWARD = 1.0
"""The reward that makes a completion correct, and so a candidate for replay."""


@dataclass(frozen=True)
class Rollouts:
    """Completions of one step, flat, one entry a completion.

    ``reward_B`` is raw, in [0, 1]; NaN marks a completion that could not be judged: it is left out of everything.
    ``log_ratio_B`` is Σ_t (log π_θ − log π_old), 0 unless given. ``token_ids`` and ``logprobs`` (behaviour, one a
    token) make correct completions candidates for replay; without them none is admitted.
    """

    keys: Sequence[str]
    reward_B: ArrayLike
    log_ratio_B: ArrayLike = 0.0
    token_ids: Sequence[Sequence[int]] | None = None
    logprobs: Sequence[Sequence[float]] = field(default=())


class DifficultyScheduler:
    """Selects prompts, gives log Z and advantages, learns from what was observed, and replays.

    Args:
        keys: one stable key a prompt, all different.
        embeddings_NH: the prompts' embeddings in the order of ``keys``, float, constant over the run.
        learner: the partition function and its optimiser; one with the defaults and ``beta`` unless given.
        beta: temperature of the objective; read only where ``learner`` is not given.
        replay: the buffer; the paper's unless given.
        target_accuracy: τ in [0, 1].
        explore_fraction: share of a batch drawn uniformly, in [0, 1].
        cooldown_steps: steps a prompt rests after use.
        seed: of selection and dropout. Both are derived from (seed, step): there is no generator state to save.
    """

    def __init__(
        self,
        keys: Sequence[str],
        embeddings_NH: Tensor,
        *,
        learner: PartitionLearner | None = None,
        beta: float = 0.05,
        replay: ReplayBuffer | None = None,
        target_accuracy: float = 0.5,
        explore_fraction: float = 0.0,
        cooldown_steps: int = 0,
        seed: int = 0,
    ) -> None:
        self.keys = list(keys)
        self.index = {key: i for i, key in enumerate(self.keys)}
        if len(self.index) != len(self.keys):
            raise ValueError("prompt keys must be unique")
        if len(embeddings_NH) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(embeddings_NH)} embeddings")
        if not 0.0 <= target_accuracy <= 1.0:
            raise ValueError(f"target_accuracy must lie in [0, 1], got {target_accuracy}")
        self.embeddings_NH = embeddings_NH
        self.learner = learner or PartitionLearner(LogPartition(embeddings_NH, beta).to(embeddings_NH.device))
        self.replay_buffer = replay if replay is not None else ReplayBuffer()
        self.target_accuracy = target_accuracy
        self.explore_fraction = explore_fraction
        self.cooldown_steps = cooldown_steps
        self.seed = seed
        self.step = 0
        self.last_used_N = np.full(len(self.keys), NEVER, dtype=np.int64)
        self._estimate_N: Floats | None = None

    @property
    def beta(self) -> float:
        return self.learner.beta

    def accuracy_estimates(self) -> Floats:
        """p̂ = β·log Z_φ of every prompt, shape [N], with the current φ; recomputed only after a fit."""
        if self._estimate_N is None:
            self._estimate_N = self.learner.accuracy(self.embeddings_NH).double().cpu().numpy()
        return self._estimate_N

    def accuracy_estimate(self, keys: Sequence[str]) -> Floats:
        """p̂ of the prompts named, in their order (a key may recur). Raises KeyError for an unknown key."""
        return self.accuracy_estimates()[[self.index[key] for key in keys]]

    def log_z(self, keys: Sequence[str]) -> Tensor:
        """log Z_φ of the prompts named, float32 [len(keys)], on the CPU, without gradient."""
        return torch.from_numpy(self.accuracy_estimate(keys) / self.beta).float()

    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor:
        """A = r/β − log Z_φ(x) of each completion, float32 [B], on the CPU."""
        reward = torch.as_tensor(np.asarray(reward_B, dtype=np.float32))
        return trajectory_balance_advantage(reward, self.log_z(keys), self.beta)

    def select(self, count: int) -> list[str]:
        """Keys of the ``count`` distinct prompts to sample next. Raises ValueError if there are not as many.

        Changes nothing: until `observe` ends the step, asking again gives the same answer, so a step that was
        interrupted can be begun anew.
        """
        chosen = select(
            self.accuracy_estimates(),
            self.last_used_N,
            step=self.step,
            count=count,
            target=self.target_accuracy,
            explore_fraction=self.explore_fraction,
            cooldown_steps=self.cooldown_steps,
            rng=np.random.default_rng([self.seed, self.step]),
        )
        return [self.keys[i] for i in chosen]

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
            estimate = {key: float(p) for key, p in zip(judged.keys, self.accuracy_estimate(judged.keys), strict=True)}
            observed = _observed_accuracy(judged)
            metrics |= calibration_metrics(
                np.array([estimate[key] for key in observed]), np.array([*observed.values()])
            )
            candidates = self._replay_candidates(judged, {key: abs(estimate[key] - observed[key]) for key in observed})
            metrics["replay/admitted"] = float(self.replay_buffer.add(candidates))
            metrics["loss/partition"] = self._fit([judged] if replayed is None else [judged, _judged(replayed)])
        self.last_used_N[[self.index[key] for key in fresh.keys]] = self.step
        self.step += 1
        return metrics | self._state_metrics()

    def state_dict(self) -> State:
        """Everything that changes over a run: tensors and plain values, keyed by prompt."""
        return {
            "step": self.step,
            "keys": self.keys,
            "last_used": torch.from_numpy(self.last_used_N.copy()),
            "learner": self.learner.state_dict(),
            "replay": self.replay_buffer.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` gave. Prompts may have been reordered or added since, but not removed.

        Raises ValueError when the state knows prompts that this scheduler does not.
        """
        gone = [key for key in state["keys"] if key not in self.index]
        if gone:
            raise ValueError(f"the state holds {len(gone)} prompts that are not in the dataset, e.g. key {gone[0]}")
        self.step = state["step"]
        self.last_used_N[:] = NEVER
        self.last_used_N[[self.index[key] for key in state["keys"]]] = state["last_used"].numpy()
        self.learner.load_state_dict(state["learner"])
        self.replay_buffer.load_state_dict(state["replay"])
        self._estimate_N = None

    def _replay_candidates(self, judged: Rollouts, priority: dict[str, float]) -> list[ReplayEntry]:
        if judged.token_ids is None:
            return []
        rows = zip(judged.keys, np.asarray(judged.reward_B), judged.token_ids, judged.logprobs, strict=True)
        return [
            ReplayEntry(key, tuple(ids), tuple(logprobs), float(reward), self.step, priority[key])
            for key, reward, ids, logprobs in rows
            if reward >= FULL_REWARD
        ]

    def _fit(self, parts: list[Rollouts]) -> float:
        rows = [self.index[key] for part in parts for key in part.keys]
        reward_B = torch.from_numpy(np.concatenate([np.asarray(part.reward_B) for part in parts])).float()
        log_ratio_B = torch.from_numpy(np.concatenate([np.asarray(part.log_ratio_B) for part in parts])).float()
        seed = int(np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0])
        self._estimate_N = None
        return self.learner.fit(self.embeddings_NH[rows], reward_B, log_ratio_B, seed)

    def _state_metrics(self) -> dict[str, float]:
        entries = self.replay_buffer.entries
        return {
            "replay/size": float(len(entries)),
            "replay/age_mean": float(np.mean([self.step - e.step for e in entries])) if entries else math.nan,
            "replay/priority_mean": float(np.mean([e.priority for e in entries])) if entries else math.nan,
            "selection/coverage": float((self.last_used_N > NEVER).mean()),
        }


def _judged(rollouts: Rollouts) -> Rollouts:
    """The same rollouts without those that could not be judged; rewards checked, log-ratios broadcast."""
    reward_B = np.asarray(rollouts.reward_B, dtype=np.float64)
    if len(reward_B) != len(rollouts.keys):
        raise ValueError(f"{len(rollouts.keys)} keys but {len(reward_B)} rewards")
    log_ratio_B = np.broadcast_to(np.asarray(rollouts.log_ratio_B, dtype=np.float64), reward_B.shape)
    kept = np.flatnonzero(~np.isnan(reward_B)).tolist()
    if ((reward_B[kept] < 0) | (reward_B[kept] > 1)).any():
        raise ValueError("rewards must lie in [0, 1]: raw, not z-scored")
    ids = rollouts.token_ids
    return Rollouts(
        [rollouts.keys[i] for i in kept],
        reward_B[kept],
        log_ratio_B[kept],
        None if ids is None else [ids[i] for i in kept],
        () if ids is None else [rollouts.logprobs[i] for i in kept],
    )


def _observed_accuracy(judged: Rollouts) -> dict[str, float]:
    """p̄: mean reward of each prompt's judged completions, prompts in order of first appearance."""
    rewards: dict[str, list[float]] = {}
    for key, reward in zip(judged.keys, np.asarray(judged.reward_B), strict=True):
        rewards.setdefault(key, []).append(float(reward))
    return {key: float(np.mean(values)) for key, values in rewards.items()}
