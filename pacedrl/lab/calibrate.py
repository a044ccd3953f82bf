"""How good a run's accuracy estimates were: each estimator against sampled truth, at every checkpoint that was kept.

The truth of a prompt is the mean reward of completions sampled afresh from the checkpoint's policy. Nothing of this is
part of training, and none of it counts as rollouts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from pacedrl.config import Config, load_config
from pacedrl.errors import InputError
from pacedrl.lab.measures import read_rows
from pacedrl.method import DifficultyScheduler
from pacedrl.method.estimator import FLAT_MEAN, FLAT_STRENGTH, Floats, spearman
from pacedrl.method.scheduler import PRIOR_RANGE
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

PRIOR_STRENGTH = 4.0
"""Of ``combined`` in runs whose recipe does not say: completions that log Z's estimate is worth."""
BINS = np.linspace(0.0, 1.0, 11)

Group = str
"""``selected``: what the run would train on next; ``seen``: some of the prompts it has had; ``never seen``."""
GROUPS = ("selected", "seen", "never seen")


class Scores(BaseModel):
    """One estimator on one group of prompts at one checkpoint."""

    mae: float
    """Mean |p̂ − p̄|, with p̄ of S samples."""
    bias: float
    brier: float
    """Mean (p̂ − r)² over the sampled completions."""
    spearman: float | None
    """Rank correlation of p̂ with p̄; None where either is constant."""


class Checkpoint(BaseModel):
    """All of one checkpoint. Prompts are few where the run had left few of their group."""

    step: int
    prompts: dict[Group, int]
    noise: dict[Group, float]
    """What mae would be of the truth itself: the error of a mean of S samples, p smoothed by Jeffreys' prior."""
    observed: dict[Group, float]
    scores: dict[Group, dict[str, Scores]]
    beta_kl: float | None
    """Mean β·KL(π_old‖π_θ) over the steps since the checkpoint before: the error of β·log Z by the theorem."""


class Bin(BaseModel):
    """Prompts of a group, of all checkpoints, whose estimates lie in one tenth of [0, 1]; beyond it, in the nearest."""

    predicted: float
    observed: float
    prompts: int


class Calibration(BaseModel):
    """calibration.json."""

    run: str
    recipe: str
    samples: int
    left_out: float = 0.0
    """Share of all completions that the verifier could not judge: the truths are without them."""
    checkpoints: list[Checkpoint]
    reliability: dict[Group, dict[str, list[Bin]]]


def calibrate(run: Path, prompts: int, samples: int, view: View) -> Calibration:
    """Sample ``samples`` completions of up to ``prompts`` prompts of each group at each of the run's checkpoints.

    Raises InputError when the folder is no run, or holds no checkpoint.
    """
    if not (run / "config.yaml").exists():
        raise InputError(f"{run}: expected a run's folder, with its config.yaml")
    config = load_config(run / "config.yaml", [f"run.dir={json.dumps(str(run))}"])
    folders = list_checkpoints(run)
    for folder in folders:
        require_whole(folder)
    if not folders:
        raise InputError(f"{run}: this run has no checkpoint yet; let it train for checkpoint.every steps first")
    bench = _Bench(config, view)
    last_means = _LastMeans(run, bench.scheduler.keys)
    pairs: dict[Group, dict[str, list[tuple[Floats, Floats]]]] = {group: {} for group in GROUPS}
    checkpoints = []
    reads_z = config.needs_partition and config.objective.log_z_is_accuracy
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s, config.verifier.memory_mib) as pool:
        before = 0
        for folder in folders:
            step = checkpoint_step(folder)
            bench.load(folder)
            groups = _groups(bench.scheduler, config.sampling.prompts_per_step, prompts, config.run.seed)
            estimates = _estimates(bench.scheduler, last_means.until(step), reads_z)
            rows = sorted({row for part in groups.values() for row in part})
            rewards = bench.rewards(pool, rows, samples, step)
            # A prompt whose completions nobody could judge has no truth.
            judged = {group: [row for row in part if rewards[row]] for group, part in groups.items()}
            judged = {group: part for group, part in judged.items() if part}
            checkpoints.append(_checkpoint(step, judged, rewards, estimates, samples, _beta_kl(run, before, step)))
            for group, part in judged.items():
                for name, values in estimates.items():
                    pairs[group].setdefault(name, []).append((values[part], _means(rewards, part)))
            before = step
    reliability = {
        group: {name: _reliability(parts) for name, parts in named.items()} for group, named in pairs.items()
    }
    return Calibration(
        run=str(run),
        recipe=config.recipe,
        samples=samples,
        left_out=bench.unjudged / bench.sampled,
        checkpoints=checkpoints,
        reliability=reliability,
    )


class _Bench:
    """What a run's checkpoints are put on: its prompts and scheduler, and the engine it samples with."""

    def __init__(self, config: Config, view: View) -> None:
        self.config, self.view = config, view
        train, _ = load_tasks(config)
        self.device = resolve_device(config.run.device)
        policy = Policy.load(config.model, self.device)
        self.tasks, self.prompt_ids = encode_tasks(policy, train, config)
        self.prompts = unique_prompts(self.tasks)
        self.scheduler = build_scheduler(config, [prompt.key for prompt in self.prompts], self._embeddings(policy))
        self.sampler = build_sampler(config, policy)
        self.sampled = self.unjudged = 0
        """Completions, so far."""

    def _embeddings(self, policy: Policy) -> Tensor | None:
        if not self.config.needs_partition:
            return None
        self.view.phase("embedding prompts", len(self.prompts))
        ids = [self.prompt_ids[prompt.key] for prompt in self.prompts]
        return initial_embeddings(self.config, policy, ids, self.view.advance)

    def load(self, folder: Path) -> None:
        self.scheduler.load_state_dict(load_checkpoint_state(folder, "scheduler"))
        self.sampler.sync(Policy.load(self.config.model, self.device, folder))

    def rewards(self, pool: VerifierPool, rows: Sequence[int], samples: int, step: int) -> dict[int, list[float]]:
        """Row → rewards of the completions, of ``samples`` drawn as in training, that could be judged."""
        settings = replace(training_settings(self.config), group_size=samples)
        prompts = [self.prompts[row] for row in rows]
        self.view.phase(f"step {step}", len(prompts) * samples)
        seed = (self.config.run.seed, "calibrate", step)
        sampled = sample_groups(self.sampler, prompts, self.prompt_ids, settings, seed, advance=self.view.advance)
        tasks = {task.name: task for task in self.tasks}
        score_groups(pool, sampled, tasks)
        require_judged(sampled, tasks)
        judged = {row: group.rewards for row, group in zip(rows, sampled, strict=True)}
        self.sampled += len(rows) * samples
        self.unjudged += len(rows) * samples - sum(map(len, judged.values()))
        return judged


def _checkpoint(
    step: int,
    groups: dict[Group, list[int]],
    rewards: dict[int, list[float]],
    estimates: dict[str, Floats],
    samples: int,
    beta_kl: float | None,
) -> Checkpoint:
    observed = {group: _means(rewards, rows) for group, rows in groups.items()}
    return Checkpoint(
        step=step,
        prompts={group: len(rows) for group, rows in groups.items()},
        noise={group: _noise(values, samples) for group, values in observed.items()},
        observed={group: float(values.mean()) for group, values in observed.items()},
        scores={
            group: {
                name: _scores(values[rows], observed[group], [rewards[row] for row in rows])
                for name, values in estimates.items()
            }
            for group, rows in groups.items()
        },
        beta_kl=beta_kl,
    )


def _means(rewards: dict[int, list[float]], rows: Sequence[int]) -> Floats:
    return np.array([np.mean(rewards[row]) for row in rows])


def _noise(observed_P: Floats, samples: int) -> float:
    """E|p̄ − p| of a mean of that many rewards of 0 and 1, in the normal approximation √(2p(1 − p)/πS)."""
    smoothed_P = (observed_P * samples + 0.5) / (samples + 1)
    return float(np.sqrt(2 * smoothed_P * (1 - smoothed_P) / (np.pi * samples)).mean())


def _groups(scheduler: DifficultyScheduler, count: int, most: int, seed: int) -> dict[Group, list[int]]:
    """Rows of the prompts of each group that has some."""
    rng = np.random.default_rng([seed, scheduler.step])
    # The oracle's truth is that of a policy which the state does not hold.
    selected = [] if scheduler.estimator == "oracle" else [scheduler.index[key] for key in scheduler.select(count)]
    seen, never = np.flatnonzero(scheduler.visits_N > 0), np.flatnonzero(scheduler.visits_N == 0)
    rows = (selected, *(rng.permutation(part)[:most].tolist() for part in (seen, never)))
    return {group: part for group, part in zip(GROUPS, rows, strict=True) if part}


def _estimates(scheduler: DifficultyScheduler, last_mean_N: Floats, reads_z: bool) -> dict[str, Floats]:
    """Every estimator's view of all prompts, whichever of them the run selected by."""
    flat_N = np.full(len(scheduler.keys), FLAT_MEAN)
    named = {
        "counts (MoPPS)": scheduler.counts.posterior(flat_N, FLAT_STRENGTH).mean_N,
        "last group mean": last_mean_N,
        "one mean for all": np.full(len(scheduler.keys), last_mean_N.mean()),
    }
    if not reads_z:
        return named
    z_N = scheduler.partition_accuracy()
    strength = scheduler.prior_strength.value if scheduler.estimator == "combined" else PRIOR_STRENGTH
    combined_N = scheduler.counts.posterior(z_N.clip(*PRIOR_RANGE), strength).mean_N
    return {"log Z": z_N, "combined": combined_N} | named


class _LastMeans:
    """Each prompt's last observed group mean, from the run's log; of prompts never seen the mean of all others'."""

    def __init__(self, run: Path, keys: Sequence[str]) -> None:
        self._steps = read_rows(run / "groups.jsonl")
        self._keys = keys

    def until(self, step: int) -> Floats:
        means: dict[str, float] = {}
        for row in self._steps:
            if row["step"] <= step:
                for key, rewards in zip(row["keys"], row["rewards"], strict=True):
                    judged = [reward for reward in rewards if reward is not None]
                    if judged:
                        means[key] = float(np.mean(judged))
        elsewhere = float(np.mean(list(means.values()))) if means else FLAT_MEAN
        return np.array([means.get(key, elsewhere) for key in self._keys])


def _scores(estimate_P: Floats, observed_P: Floats, rewards_P: Sequence[Sequence[float]]) -> Scores:
    rank = spearman(estimate_P, observed_P)
    errors = [np.square(p - np.asarray(rewards)) for p, rewards in zip(estimate_P, rewards_P, strict=True)]
    return Scores(
        mae=float(np.abs(estimate_P - observed_P).mean()),
        bias=float((estimate_P - observed_P).mean()),
        brier=float(np.concatenate(errors).mean()),
        spearman=None if np.isnan(rank) else rank,
    )


def _reliability(parts: Sequence[tuple[Floats, Floats]]) -> list[Bin]:
    estimate, observed = (np.concatenate(side) for side in zip(*parts, strict=True))
    place = np.digitize(estimate.clip(0.0, 1.0), BINS[1:-1])
    return [
        Bin(
            predicted=float(estimate[place == i].mean()),
            observed=float(observed[place == i].mean()),
            prompts=int((place == i).sum()),
        )
        for i in range(len(BINS) - 1)
        if (place == i).any()
    ]


def _beta_kl(run: Path, after: int, until: int) -> float | None:
    rows = read_rows(run / "metrics.jsonl")
    values = [row["kl/old_beta"] for row in rows if after < row["step"] <= until and row["kl/old_beta"] is not None]
    return float(np.mean(values)) if values else None


def load_calibration(path: Path) -> Calibration:
    """Read calibration.json."""
    return Calibration.model_validate(json.loads(path.read_text(encoding="utf-8")))
