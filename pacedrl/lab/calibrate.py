"""Compares the accuracy estimates of a run with the truth, for each estimator at each checkpoint that was kept.

The truth of a prompt is the mean reward of fresh completions by the checkpoint's policy. They do not count as rollouts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pacedrl.config import Config, load_config
from pacedrl.errors import InputError
from pacedrl.intervals import scipy_stats
from pacedrl.logs import read_rows
from pacedrl.method import DifficultyScheduler
from pacedrl.method.beliefs import AccuracyEstimator
from pacedrl.method.estimator import FLAT_MEAN, TINY, Beliefs, Floats, spearman
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.collect import sample_groups, score_groups
from pacedrl.rollouts.engines import build_sampler, training_settings
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, unique_prompts
from pacedrl.rollouts.verdicts import require_judged
from pacedrl.tasks.pool import VerifierPool
from pacedrl.training.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint_state, require_whole
from pacedrl.training.curriculum import build_scheduler, initial_embeddings
from pacedrl.view import View

INTERVALS = {"50%": 0.5, "90%": 0.9}
"""Probabilities of the intervals whose coverage is measured."""
BINS = np.linspace(0.0, 1.0, 11)
Counts = NDArray[np.int64]
SUBSETS = ("selected", "seen", "never seen")
"""The prompts that the run would train on next, and random samples of those that it has and has not trained on."""


class Scores(BaseModel):
    """One estimator on one subset of the prompts at one checkpoint."""

    mae: float
    """Mean |p̂ − p̄|, where p̄ is the mean of S samples."""
    bias: float
    brier: float
    """Mean (p̂ − r)² over the sampled completions."""
    spearman: float | None
    """Rank correlation of p̂ with p̄; None if either is constant."""
    coverage: dict[str, float] = {}
    """Share of the truths in the central intervals of ``INTERVALS`` (`coverage`); empty for point estimates."""


class CheckpointScores(BaseModel):
    """The scores at one checkpoint by subset of the prompts; empty subsets are missing."""

    step: int
    prompts: dict[str, int] = {}
    noise: dict[str, float] = {}
    """The mae of a perfect estimate: the error of a mean of S samples, with p smoothed by Jeffreys' prior."""
    observed: dict[str, float] = {}
    scores: dict[str, dict[str, Scores]] = {}
    """Scores of each estimator on each subset: subset → estimator → scores."""
    beta_kl: float | None
    """Mean β·KL(π_old‖π_θ) over the steps since the previous checkpoint: the theoretical error of β·log Z."""


class Bin(BaseModel):
    """The prompts whose estimates lie in one tenth of [0, 1]; the outer bins also take estimates outside of [0, 1]."""

    predicted: float
    observed: float
    prompts: int


class Calibration(BaseModel):
    """The content of calibration.json."""

    run: str
    recipe: str
    samples: int
    left_out: float = 0.0
    """Share of the completions that the verifier could not judge; they are left out."""
    checkpoints: list[CheckpointScores]
    reliability: dict[str, dict[str, list[Bin]]]
    """Bins of the reliability plot, over all checkpoints: subset → estimator → bins."""


def calibrate(run: Path, prompts: int, samples: int, view: View) -> Calibration:
    """Sample ``samples`` completions of up to ``prompts`` prompts of each subset at each checkpoint of the run.

    Raises InputError if the folder holds no run or the run has no checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise InputError(f"{run}: expected a run's folder, with its config.yaml")
    config = load_config(run / "config.yaml")
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": run})})  # it may have been moved
    folders = list_checkpoints(run)
    for folder in folders:
        require_whole(folder)
    if not folders:
        raise InputError(f"{run}: this run has no checkpoint yet; let it train for checkpoint.every steps first")
    calibrator = _Calibrator(config, prompts, samples, view)
    steps = pairwise([0, *map(checkpoint_step, folders)])
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        checkpoints = [
            calibrator.measure(pool, folder, before, step)
            for folder, (before, step) in zip(folders, steps, strict=True)
        ]
    return Calibration(
        run=str(run),
        recipe=config.recipe,
        samples=samples,
        left_out=calibrator.unjudged / calibrator.sampled,
        checkpoints=checkpoints,
        reliability={
            subset: {name: _reliability(pairs) for name, pairs in named.items()}
            for subset, named in calibrator.pairs.items()
        },
    )


def load_calibration(path: Path) -> Calibration:
    """Read calibration.json."""
    return Calibration.model_validate_json(path.read_text(encoding="utf-8"))


class _Calibrator:
    """Measures the checkpoints of a run one after the other, with its prompts, scheduler, sampler and logs."""

    def __init__(self, config: Config, prompts: int, samples: int, view: View) -> None:
        self.config, self.most, self.samples, self.view = config, prompts, samples, view
        train, _ = load_tasks(config)
        self.device = resolve_device(config.run.device)
        policy = Policy.load(config.model, self.device)
        tasks = encode_tasks(policy, train, config)
        self.tasks = {task.name: task for task in tasks}
        self.prompts = unique_prompts(tasks)
        embeddings_NH = initial_embeddings(config, policy, self.prompts, view)
        self.scheduler = build_scheduler(config, [prompt.key for prompt in self.prompts], embeddings_NH)
        self.sampler = build_sampler(config, policy)
        self.groups, self.metrics = (read_rows(config.run.dir / f"{log}.jsonl") for log in ("groups", "metrics"))
        self.sampled = self.unjudged = 0
        """Numbers of completions so far."""
        self.pairs: dict[str, dict[str, list[tuple[Floats, Floats]]]] = {subset: {} for subset in SUBSETS}
        """Estimates and observed accuracies so far, by subset and estimator."""

    def measure(self, pool: VerifierPool, folder: Path, before: int, step: int) -> CheckpointScores:
        """Load the checkpoint of ``step`` and score its estimates; ``before`` is the step of the previous one."""
        self.scheduler.load_state_dict(load_checkpoint_state(folder, "scheduler"))
        self.sampler.sync(Policy.load(self.config.model, self.device, folder))
        subsets = _subsets(self.scheduler, self.config.sampling.prompts_per_step, self.most, self.config.run.seed)
        reads_z = self.config.needs_partition and self.config.objective.log_z_is_accuracy
        estimators = _estimators(self.scheduler, reads_z)
        estimates = {name: estimator.mean() for name, estimator in estimators.items()}
        estimates |= _simple_estimates(_last_means(self.groups, self.scheduler.keys, step))
        rewards = self._rewards(pool, sorted({row for rows in subsets.values() for row in rows}), step)
        logged = [row["kl/old_beta"] for row in self.metrics if before < row["step"] <= step]
        kl = [value for value in logged if value is not None]
        result = CheckpointScores(step=step, beta_kl=float(np.mean(kl)) if kl else None)
        for subset, rows in subsets.items():
            judged = [row for row in rows if rewards[row]]  # nothing is known about the others
            if not judged:
                continue
            observed_P = np.array([np.mean(rewards[row]) for row in judged])
            result.prompts[subset] = len(judged)
            result.noise[subset] = _noise(observed_P, self.samples)
            result.observed[subset] = float(observed_P.mean())
            result.scores[subset] = {}
            for name, estimate_N in estimates.items():
                scores = _scores(estimate_N[judged], observed_P, [rewards[row] for row in judged])
                if name in estimators:
                    beliefs = estimators[name].beliefs(np.array(judged))
                    scores.coverage = _coverages(beliefs, [rewards[row] for row in judged])
                result.scores[subset][name] = scores
                self.pairs[subset].setdefault(name, []).append((estimate_N[judged], observed_P))
        return result

    def _rewards(self, pool: VerifierPool, rows: Sequence[int], step: int) -> dict[int, list[float]]:
        """Sample completions as in training, and return the rewards of those that could be judged, by prompt row."""
        settings = replace(training_settings(self.config), group_size=self.samples)
        prompts = [self.prompts[row] for row in rows]
        self.view.phase(f"sampling completions at step {step}", len(prompts) * self.samples)
        seed = (self.config.run.seed, "calibrate", step)
        groups = sample_groups(self.sampler, prompts, settings, seed, advance=self.view.advance)
        score_groups(pool, groups, self.tasks)
        require_judged(groups, self.tasks)
        rewards = {row: group.rewards for row, group in zip(rows, groups, strict=True)}
        self.sampled += len(rows) * self.samples
        self.unjudged += len(rows) * self.samples - sum(map(len, rewards.values()))
        return rewards


def _subsets(scheduler: DifficultyScheduler, count: int, most: int, seed: int) -> dict[str, list[int]]:
    """Return the rows of at most ``most`` prompts of each subset; empty subsets are left out."""
    rng = np.random.default_rng([seed, scheduler.step])
    # The oracle selects by the accuracies of the policy, which the scheduler's state does not hold.
    selected = [] if scheduler.estimator.name == "oracle" else [scheduler.index[key] for key in scheduler.select(count)]
    visits_N = scheduler.visits_N
    seen, never = (rng.permutation(np.flatnonzero(mask))[:most].tolist() for mask in (visits_N > 0, visits_N == 0))
    return {subset: rows for subset, rows in zip(SUBSETS, (selected, seen, never), strict=True) if rows}


def _estimators(scheduler: DifficultyScheduler, reads_z: bool) -> dict[str, AccuracyEstimator]:
    """Return each estimator with the run's evidence, not only the one that the run used."""
    estimator = scheduler.estimator
    by_z = {"log Z": estimator.with_name("partition"), "combined": estimator.with_name("combined")} if reads_z else {}
    counts = "implied evidence (BOTS)" if estimator.name == "bots" else "counts (MoPPS)"
    return by_z | {counts: estimator.with_name("counts")}


def _simple_estimates(last_mean_N: Floats) -> dict[str, Floats]:
    return {"last group mean": last_mean_N, "one mean for all": np.full(len(last_mean_N), last_mean_N.mean())}


def _last_means(groups: Sequence[Mapping[str, Any]], keys: Sequence[str], step: int) -> Floats:
    """Mean reward of each prompt's last judged group up to ``step``; for prompts without one, the mean of the others.

    ``groups`` are the rows of groups.jsonl.
    """
    means: dict[str, float] = {}
    for row in groups:
        if row["step"] <= step:
            for key, rewards in zip(row["keys"], row["rewards"], strict=True):
                judged = [reward for reward in rewards if reward is not None]
                if judged:
                    means[key] = float(np.mean(judged))
    others = float(np.mean(list(means.values()))) if means else FLAT_MEAN
    return np.array([means.get(key, others) for key in keys])


def _noise(observed_P: Floats, samples: int) -> float:
    """E|p̄ − p| of a mean of rewards 0 and 1, in the normal approximation √(2p(1 − p)/πS)."""
    smoothed_P = (observed_P * samples + 0.5) / (samples + 1)
    return float(np.sqrt(2 * smoothed_P * (1 - smoothed_P) / (np.pi * samples)).mean())


def _scores(estimate_P: Floats, observed_P: Floats, rewards_P: Sequence[Sequence[float]]) -> Scores:
    errors_P = estimate_P - observed_P
    rank = spearman(estimate_P, observed_P)
    brier = [np.square(p - np.asarray(rewards)) for p, rewards in zip(estimate_P, rewards_P, strict=True)]
    return Scores(
        mae=float(np.abs(errors_P).mean()),
        bias=float(errors_P.mean()),
        brier=float(np.concatenate(brier).mean()),
        spearman=None if np.isnan(rank) else rank,
    )


def _coverages(beliefs: Beliefs, rewards_P: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the coverage of each of ``INTERVALS`` by these rewards; nothing for point estimates."""
    if beliefs.are_points:
        return {}
    right_P = np.array([round(sum(rewards)) for rewards in rewards_P])  # partial rewards add up to right completions
    trials_P = np.array([len(rewards) for rewards in rewards_P])
    return {name: coverage(beliefs, right_P, trials_P, share) for name, share in INTERVALS.items()}


def coverage(beliefs: Beliefs, right_P: Counts, trials_P: Counts, share: float) -> float:
    """Return the share of prompts whose result lies in the central interval, of probability ``share``, of its belief.

    The result is the number of right completions among ``trials_P``. A Beta belief predicts a beta-binomial number, so
    the interval contains the sampling noise of the result as well as the belief's own width. A number on the boundary
    of the interval counts in part (the expectation of the randomised probability integral transform). The coverage of
    right beliefs is therefore ``share`` on average, however few the trials.
    """
    alpha_P1, beta_P1 = (
        (mean_P * beliefs.strength_N).clip(TINY)[:, None] for mean_P in (beliefs.mean_N, 1.0 - beliefs.mean_N)
    )
    number_K = np.arange(trials_P.max() + 1)
    probability_PK = scipy_stats().betabinom.pmf(number_K, trials_P[:, None], alpha_P1, beta_P1)
    below_P = np.where(number_K < right_P[:, None], probability_PK, 0.0).sum(axis=1)
    at_P = probability_PK[np.arange(len(right_P)), right_P]
    low, high = (1.0 - share) / 2.0, (1.0 + share) / 2.0
    overlap_P = (np.minimum(below_P + at_P, high) - np.maximum(below_P, low)).clip(0.0)
    overlap_P = np.minimum(overlap_P, at_P)  # which rounding may exceed
    return float(np.divide(overlap_P, at_P, out=np.zeros_like(at_P), where=at_P > 0.0).mean())


def _reliability(parts: Sequence[tuple[Floats, Floats]]) -> list[Bin]:
    """Mean estimate and mean observation in each bin that has prompts, from pairs of estimates and observations."""
    estimate_P, observed_P = (np.concatenate(side) for side in zip(*parts, strict=True))
    bin_P = np.digitize(estimate_P.clip(0.0, 1.0), BINS[1:-1])
    return [
        Bin(
            predicted=float(estimate_P[bin_P == i].mean()),
            observed=float(observed_P[bin_P == i].mean()),
            prompts=int((bin_P == i).sum()),
        )
        for i in np.unique(bin_P)
    ]
