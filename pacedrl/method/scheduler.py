"""The difficulty scheduler, which uses estimates of every prompt's accuracy to select, weigh and replay.

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
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pacedrl.method.beliefs import AccuracyEstimator, EstimatorName, Partition, PartitionName, default_partition
from pacedrl.method.estimator import (
    ALL,
    CALIBRATION,
    Floats,
    Indices,
    Rollouts,
    Rows,
    calibration_metrics,
    pool_histogram,
)
from pacedrl.method.greso import ZeroVarianceSkips
from pacedrl.method.leases import Leases
from pacedrl.method.objectives import trajectory_balance_advantage
from pacedrl.method.selection import (
    FULL_REWARD,
    NEVER,
    ReplayBuffer,
    ReplayEntry,
    SelectionMethod,
    last_solved,
    replay_candidates,
    rested,
    select,
    selection_score,
)

State = dict[str, Any]

LEAST_WEIGHT = 1e-6
"""Lower bound of the weight of old results, because the fit of log Z divides by the mean weight."""
VISIT_STREAM = 1
"""Part of the seed of the random numbers that are drawn when a step ends, to tell them from those of selection."""


class DifficultyScheduler:
    """Selects prompts, computes log Z and advantages, learns from the rollouts, and replays past completions.

    Args:
        keys: one distinct, stable key per prompt.
        embeddings_NH: the prompts' embeddings in the order of ``keys``, finite and constant over the run; None
            if neither the estimator nor the trainer needs log Z.
        partition: ``mlp`` (the paper's log Z) or ``closed_form`` (ours) with default settings; or a log Z that has its
            own embeddings, in the order of ``keys``.
        beta: temperature β of the objective; ignored if ``partition`` brings its own.
        replay: the replay buffer; by default one with the paper's settings.
        selection: how prompts are selected (`pacedrl.method.selection.selection_score`); the paper's is ``nearest``.
        estimator: the source of accuracy estimates, ``partition`` in the paper (`AccuracyEstimator`).
        target_accuracy: target accuracy τ in [0, 1].
        explore_fraction: share of a batch selected uniformly. The number of prompts is rounded.
        retain_fraction: share of a batch selected among the prompts that were solved when last used, those used longest
            ago first. Both shares are at least 0 and together at most 1.
        cooldown_steps: number of steps that a prompt rests after use.
        candidates: m, to select a batch of P from m·P prompts drawn uniformly at each step (PCL, arXiv 2510.01135);
            None to select from all (the paper). Candidates explore, and a batch cannot fill with similar prompts.
        group_size: number G of completions of a prompt, for the selection ``mapp``.
        prior_strength, discount, implied_weight: settings of the estimator (`AccuracyEstimator`).
        lease_steps: number of policy steps after which the lease of a prompt expires (`pacedrl.method.leases`), at
            least 1; by default 8, the greatest age at which a completion is replayed.
        age_discount: γ, the factor per policy step of age by which results of an older policy weigh less, in (0, 1].
            With the discount of a log Z in closed form, late results weigh in it as if they had come in time.
        seed: seed of selection and dropout. Random numbers are derived from (seed, step, number of leases), so there is
            no generator state to save.

    Raises ValueError for duplicate keys, missing embeddings, and settings out of range.
    """

    def __init__(
        self,
        keys: Sequence[str],
        embeddings_NH: Tensor | None = None,
        *,
        partition: PartitionName | Partition = "mlp",
        beta: float = 0.05,
        replay: ReplayBuffer | None = None,
        selection: SelectionMethod = "nearest",
        estimator: EstimatorName = "partition",
        target_accuracy: float = 0.5,
        explore_fraction: float = 0.0,
        retain_fraction: float = 0.0,
        cooldown_steps: int = 0,
        candidates: int | None = None,
        group_size: int = 8,
        prior_strength: float | None = 4.0,
        discount: float = 0.5,
        implied_weight: float = 0.1,
        lease_steps: int = 8,
        age_discount: float = 0.9,
        seed: int = 0,
    ) -> None:
        self.keys = list(keys)
        self.index = {key: i for i, key in enumerate(self.keys)}
        embeddings_NH = None if embeddings_NH is None else torch.as_tensor(embeddings_NH)
        if len(self.index) != len(self.keys):
            raise ValueError("prompt keys must be unique")
        if embeddings_NH is not None and len(embeddings_NH) != len(self.keys):
            raise ValueError(f"{len(self.keys)} keys but {len(embeddings_NH)} embeddings")
        if selection not in get_args(SelectionMethod):
            raise ValueError(f"selection must be one of {', '.join(get_args(SelectionMethod))}, got '{selection}'")
        if not 0.0 < age_discount <= 1.0:
            raise ValueError(f"age_discount must lie in (0, 1], got {age_discount}")
        if not 0.0 <= target_accuracy <= 1.0:
            raise ValueError(f"target_accuracy must lie in [0, 1], got {target_accuracy}")
        if min(explore_fraction, retain_fraction) < 0.0 or explore_fraction + retain_fraction > 1.0:
            raise ValueError(
                f"explore_fraction and retain_fraction must be at least 0 and together at most 1, got "
                f"{explore_fraction} and {retain_fraction}"
            )
        for name, number, least in (
            ("candidates", candidates, 1),
            ("group_size", group_size, 1),
            ("cooldown_steps", cooldown_steps, 0),
        ):
            if number is not None:
                _require_whole(name, number, least)
        self.partition = default_partition(partition, embeddings_NH, beta) if isinstance(partition, str) else partition
        self.estimator = AccuracyEstimator(
            estimator, len(self.keys), self.partition, prior_strength, discount, implied_weight
        )
        self.replay_buffer = replay if replay is not None else ReplayBuffer()
        self.selection = selection
        self.target_accuracy = target_accuracy
        self.explore_fraction = explore_fraction
        self.retain_fraction = retain_fraction
        self.cooldown_steps = cooldown_steps
        self.candidates = candidates
        self.group_size = group_size
        self.skips = ZeroVarianceSkips(len(self.keys)) if selection == "greso" else None
        self.leases = Leases(lease_steps)
        self.age_discount = age_discount
        self.seed = seed
        self.step = 0
        self.last_used_N: Indices = np.full(len(self.keys), NEVER, dtype=np.int64)
        self.visits_N: Indices = np.zeros(len(self.keys), dtype=np.int64)
        self.solved_N: NDArray[np.bool_] = np.zeros(len(self.keys), dtype=bool)

    def accuracy_estimates(self) -> Floats:
        """Return p̂ of every prompt, shape [N]; with the default estimator this is β·log Z with the current φ."""
        return self.estimator.mean()

    def accuracy_estimate(self, keys: Sequence[str]) -> Floats:
        """Return p̂ of the given prompts in their order; a key may recur. Raises KeyError for an unknown key."""
        return self.estimator.mean(self._rows(keys))

    def accuracy_interval(self, keys: Sequence[str], share: float = 0.9) -> tuple[Floats, Floats]:
        """Return the ends of the interval that contains each prompt's accuracy with this probability.

        The interval of a point estimate has no width. Raises ValueError for a ``share`` outside (0, 1).
        """
        if not 0.0 < share < 1.0:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        return self.estimator.beliefs(self._rows(keys)).interval(share)

    def pool(self) -> dict[str, Any] | None:
        """Return the histogram of all estimates (`pacedrl.method.estimator.pool_histogram`); None without estimates."""
        return pool_histogram(self.accuracy_estimates())

    def estimate_strength(self, keys: Sequence[str]) -> Floats:
        """Return the number of completions that p̂ is worth for each given prompt: the posterior's α + β.

        It is infinite for point estimates.
        """
        return self.estimator.beliefs(self._rows(keys)).strength_N

    def log_z(self, keys: Sequence[str]) -> Tensor:
        """Return log Z_φ of the given prompts: float32 [len(keys)] on the CPU, without gradient."""
        return torch.from_numpy(self._log_z.accuracy(self._rows(keys)) / self._log_z.beta).float()

    def advantage(self, keys: Sequence[str], reward_B: ArrayLike) -> Tensor:
        """Return A = r/β − log Z_φ(x) of each completion: float32 [B] on the CPU."""
        reward = torch.as_tensor(np.asarray(reward_B, dtype=np.float32))
        return trajectory_balance_advantage(reward, self.log_z(keys), self._log_z.beta)

    def set_truth(self, accuracy_N: ArrayLike) -> None:
        """Set the true accuracies of all prompts, in the order of ``keys``, for the estimator ``oracle``."""
        truth_N = np.asarray(accuracy_N, dtype=np.float64)
        if truth_N.shape != (len(self.keys),):
            raise ValueError(f"expected {len(self.keys)} accuracies, got shape {truth_N.shape}")
        self.estimator.truth_N = truth_N

    def select(self, count: int) -> list[str]:
        """Return the keys of ``count`` distinct prompts to sample next, without leasing them.

        Prompts under lease are left out; if too few others remain, those taken longest ago are added. This changes no
        state: repeated calls return the same keys until `take` or `observe` is called, so an interrupted step can be
        repeated. Raises ValueError if there are fewer than ``count`` prompts.
        """
        _require_whole("count", count, 0)
        # Within a step the number of leases only grows, so that no two batches get the same random numbers.
        leases = [len(self.leases)] if self.leases else []
        rng = np.random.default_rng([self.seed, self.step, *leases])
        free_N = self.leases.free(len(self.keys), at_least=count)
        retained = self._retained(round(count * self.retain_fraction), free_N, rng)
        others = count - len(retained)
        free_N[retained] = False
        scored, rows = self._candidates(others, free_N, rng)
        epoch_N = self.visits_N if self.skips is None else self.skips.next_epoch()
        score_P = selection_score(
            self.selection, self.estimator, scored, epoch_N, self.target_accuracy, self.group_size, rng
        )
        chosen = select(
            score_P[rows] if isinstance(scored, slice) else score_P,
            self.last_used_N[rows],
            step=self.step,
            count=others,
            explored=min(round(count * self.explore_fraction), others),
            cooldown_steps=self.cooldown_steps,
            rng=rng,
        )
        return [self.keys[i] for i in (*retained, *rows[chosen])]

    def take(self, count: int) -> list[str]:
        """Return the keys that `select` returns and lease them, so that the next call returns others.

        `pacedrl.method.leases` has the rules for a trainer with several batches under way.
        """
        keys = self.select(count)
        self.leases.take(self._rows(keys), self.step)
        return keys

    def leased(self) -> list[str]:
        """Return the keys of the prompts under lease in the order of taking; a prompt that was taken twice recurs."""
        return [self.keys[row] for row in self.leases.rows]

    def release(self, keys: Collection[str]) -> None:
        """End the leases of these prompts as if they had not been taken: nothing will be observed for them."""
        self.leases.release(self._rows(keys))

    def replay(self) -> list[ReplayEntry]:
        """Return past completions to train on together with this step's fresh ones."""
        return self.replay_buffer.draw(self.step)

    def observe(self, fresh: Rollouts, replayed: Rollouts | None = None) -> dict[str, float]:
        """Learn from one step's rollouts: fit log Z, fill the replay buffer, close leases, count visits, end the step.

        ``fresh`` contains the results since the last call, from any batch. Its prompts need not be under lease.

        Estimates are compared with observations before they are fitted to them, so the calibration metrics measure
        genuine predictions. They are NaN if no completion could be judged. ``replayed`` only takes part in the fit.
        Omit it to keep replayed completions out of log Z: all of them are correct, so they bias it upwards.

        Raises KeyError for an unknown prompt and ValueError for `Rollouts` that are not valid; nothing is learned then.

        Returns the calibration and replay metrics, ``loss/partition``, ``selection/coverage`` (the share of prompts
        used so far), ``estimator/prior_strength`` and ``estimator/stale``.
        """
        metrics = dict.fromkeys((*CALIBRATION, "loss/partition"), math.nan) | {"replay/admitted": 0.0}
        policy_step = fresh.policy_step_by_prompt(self.step)
        judged, again = fresh.judged(), None if replayed is None else replayed.judged()
        for part in (fresh, replayed):
            self._rows([] if part is None else part.keys)  # an unknown prompt must not fail later, half observed
        results = judged.rewards_by_prompt()
        if results:
            rows, step_P = self._rows(results), np.array([policy_step[key] for key in results])
            observed_P = np.array([np.mean(rewards) for rewards in results.values()])
            estimate_P = self.accuracy_estimate(list(results))
            metrics |= calibration_metrics(estimate_P, observed_P)
            priority = dict(zip(results, np.abs(estimate_P - observed_P).tolist(), strict=True))
            oldest = self.step - self.replay_buffer.max_age
            correct = replay_candidates(judged, priority, policy_step, oldest)
            metrics["replay/admitted"] = float(self.replay_buffer.add(correct))
            weight_P = np.maximum(self.age_discount ** (self.step - step_P), LEAST_WEIGHT)
            self.estimator.observe(rows, list(results.values()), step_P, weight_P)
            self._note_solved(rows, observed_P, step_P)
            if self.partition is not None:
                weight = dict(zip(results, weight_P.tolist(), strict=True))
                metrics["loss/partition"] = self._fit(self.partition, judged, weight, again)
        if self.skips is not None:
            rng = np.random.default_rng([self.seed, self.step, 0, VISIT_STREAM])
            used = np.unique(self._rows(fresh.keys))
            self.skips.observe(used, self._rows(results), list(results.values()), rng)
        self._note_used(self._rows(policy_step), np.array(list(policy_step.values()), dtype=np.int64))
        self.step += 1
        self.leases.expire(self.step)
        return metrics | self._state_metrics()

    def state_dict(self) -> State:
        """Return all state that changes during a run, as tensors and plain values in the order of ``keys``."""
        return {
            "step": self.step,
            "keys": self.keys,
            "last_used": torch.from_numpy(self.last_used_N.copy()),
            "visits": torch.from_numpy(self.visits_N.copy()),
            "solved": torch.from_numpy(self.solved_N.copy()),
            "leases": self.leases.state_dict(),
            "estimator": self.estimator.state_dict(),
            "partition": None if self.partition is None else self.partition.state_dict(),
            "skips": None if self.skips is None else self.skips.state_dict(),
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
        self.solved_N[:] = False
        self.solved_N[rows] = state["solved"].numpy()
        self.leases.load_state_dict(state["leases"], rows)
        self.estimator.load_state_dict(state["estimator"], rows)
        if self.partition is not None:
            self.partition.load_state_dict(state["partition"])
        if self.skips is not None:
            self.skips.load_state_dict(state["skips"], rows)
        self.replay_buffer.load_state_dict(state["replay"])

    @property
    def _log_z(self) -> Partition:
        if self.partition is None:
            raise ValueError("this scheduler was made without embeddings, so it has no log Z")
        return self.partition

    def _rows(self, keys: Collection[str]) -> Indices:
        try:
            return np.fromiter((self.index[key] for key in keys), dtype=np.int64, count=len(keys))
        except KeyError as error:
            raise KeyError(f"{error.args[0]!r} is not the key of a prompt") from None

    def _note_solved(self, rows: Indices, observed_P: Floats, step_P: Indices) -> None:
        """Note whether all parts of each prompt's newest visit were solved."""
        newer_P, older_P = step_P > self.last_used_N[rows], step_P < self.last_used_N[rows]
        solved_P = (observed_P >= FULL_REWARD) & (newer_P | self.solved_N[rows])
        self.solved_N[rows] = np.where(older_P, self.solved_N[rows], solved_P)

    def _note_used(self, rows: Indices, step_P: Indices) -> None:
        """Close the prompts' leases. Count a visit of each that this policy and newer ones had not used before."""
        self.leases.close(rows)
        self.visits_N[rows] += step_P > self.last_used_N[rows]
        self.last_used_N[rows] = np.maximum(self.last_used_N[rows], step_P)

    def _retained(self, count: int, free_N: NDArray[np.bool_], rng: np.random.Generator) -> Indices:
        """Return at most ``count`` rested prompts that were solved when last used."""
        if count == 0:
            return np.empty(0, dtype=np.int64)
        rested_N = self.last_used_N < self.step - self.cooldown_steps
        return last_solved(self.solved_N & free_N & rested_N, self.last_used_N, count, rng)

    def _candidates(self, count: int, free_N: NDArray[np.bool_], rng: np.random.Generator) -> tuple[Rows, Indices]:
        """Return the rows to score and the rows to select from."""
        free = np.flatnonzero(free_N)
        if self.candidates is None:
            return ALL, free
        free = free[rested(self.last_used_N[free], self.step, self.cooldown_steps, count, rng)]
        rows: Indices = np.sort(rng.choice(free, min(self.candidates * count, len(free)), replace=False))
        return rows, rows

    def _fit(
        self, partition: Partition, judged: Rollouts, weight: Mapping[str, float], replayed: Rollouts | None
    ) -> float:
        """Fit log Z to the completions that have a target; return the loss, or NaN if none has one."""
        parts = [judged] if replayed is None else [judged, replayed]
        rows = np.concatenate([self._rows(part.keys) for part in parts])
        target_B = np.concatenate([np.asarray(part.partition_reward_B) for part in parts])
        log_ratio_B = np.concatenate([np.asarray(part.log_ratio_B) for part in parts])
        weight_B = np.ones(len(rows))
        weight_B[: len(judged.keys)] = [weight[key] for key in judged.keys]
        known = ~np.isnan(target_B)
        if not known.any():
            return math.nan
        return partition.fit(
            rows[known],
            torch.from_numpy(target_B[known]).float(),
            torch.from_numpy(log_ratio_B[known]).float(),
            seed=int(np.random.SeedSequence([self.seed, self.step]).generate_state(1)[0]),
            weight_B=torch.from_numpy(weight_B[known]),
        )

    def _state_metrics(self) -> dict[str, float]:
        return self.replay_buffer.metrics(self.step) | {
            "selection/coverage": float((self.last_used_N > NEVER).mean()),
            "estimator/prior_strength": self.estimator.mean_strength,
            "estimator/stale": self.estimator.stale_share(self.last_used_N, self.step - 1),
        }


def _require_whole(name: str, number: float, least: int) -> None:
    if number != int(number) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number}")
