"""Compare estimates of prompts' accuracies, for fixed policies and for moving ones: make results-estimates.

    python docs/results/estimates.py runs/results/estimates --streams 5

FOLDER/words, FOLDER/even and FOLDER/skewed hold what estimates_data.py wrote about a fixed policy and its prompts. A
stream shows each estimator batches of P groups of 8 completions, each prompt at most once, in a random order. At some
numbers of observed prompts the estimates of the prompts seen so far and of the others, up to 500 of each, are compared
with the truth. The truth is exact for the tiny model. For SmolLM2 it is the mean of the 64 completions that the stream
does not use; ``noise`` is the error that a perfect estimate would have against it.

Coverage is measured for estimators that give a distribution, by the results of 64 completions of each prompt
(`pacedrl.lab.calibrate.coverage`, which accounts for their noise); for the tiny model they are drawn from the truth.

FOLDER/moving_NAME are runs of ``grpo`` with the tiny model, whose policy moves. Their steps are replayed: each step's
accuracies are estimated before they are observed (prequential), with one γ after another. With the default γ, the
estimates are also compared with the exact accuracies of the policy at each checkpoint.

Writes estimates.json beside this file: mean and standard deviation over the streams.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pacedrl.config import Config, load_config
from pacedrl.lab.calibrate import coverage
from pacedrl.logs import read_rows
from pacedrl.method import ClosedFormPartition, LogPartition, MlpPartition
from pacedrl.method.beliefs import AccuracyEstimator, EstimatorName, Partition
from pacedrl.method.estimator import Beliefs, spearman
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.passes import true_accuracies
from pacedrl.policy.policy import Policy
from pacedrl.recipes import RECIPES
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, unique_prompts
from pacedrl.training.checkpoint import checkpoint_step, list_checkpoints
from pacedrl.types import Prompt

GROUP = 8
MOST = 500
"""Maximum number of prompts, seen or not, on which estimates are scored."""
TRIALS = 64
"""Completions by whose results coverage is measured."""
POOLS = {
    "words": (8, (32, 64, 128, 256)),
    "even": (32, (32, 128, 512, 2048)),
    "skewed": (32, (32, 128, 512, 2048)),
}
"""Prompts per step, and the numbers of observed prompts at which estimates are scored."""
DISCOUNTS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The prompts of a fixed policy; either their exact accuracies or sampled rewards are known."""

    embeddings: dict[str, Tensor]
    accuracy_N: Floats | None
    reward_NS: Floats | None

    def __len__(self) -> int:
        return len(self.embeddings["middle"])

    def sample(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Return rewards of one group and of ``TRIALS`` more completions of each prompt: [N, G] and [N, TRIALS]."""
        size = GROUP + TRIALS
        if self.accuracy_N is not None:
            reward_NS = (rng.random((len(self), size)) < self.accuracy_N[:, None]).astype(float)
        else:
            assert self.reward_NS is not None
            reward_NS = rng.permuted(self.reward_NS, axis=1)[:, :size]
        return reward_NS[:, :GROUP], reward_NS[:, GROUP:]


def load_pool(folder: Path) -> Pool:
    layers = {layer: torch.from_numpy(np.load(folder / f"{layer}.npy")) for layer in ("middle", "last")}
    scaled = [standardised(embeddings_NH) for embeddings_NH in layers.values()]
    exact, sampled = folder / "accuracy.npy", folder / "rewards.npy"
    return Pool(
        layers | {"both": torch.cat(scaled, dim=1)},
        np.load(exact) if exact.exists() else None,
        np.load(sampled) if sampled.exists() else None,
    )


def standardised(embeddings_NH: Tensor) -> Tensor:
    """Return the embeddings with standardised features, so that those of two layers may be joined."""
    values_NH = embeddings_NH.float()
    return (values_NH - values_NH.mean(dim=0)) / values_NH.std(dim=0).clamp_min(1e-6)


@dataclass(frozen=True)
class Candidate:
    """An estimator, its log Z and whether it must see one batch after another.

    Without forgetting, the closed form depends only on the sum over all batches, so it may see them at once.
    """

    name: EstimatorName
    partition: Callable[[Pool], Partition | None]
    in_steps: bool = True


def mlp(layer: str) -> Callable[[Pool], Partition]:
    def build(pool: Pool) -> Partition:
        torch.manual_seed(0)
        return MlpPartition(LogPartition(pool.embeddings[layer], 0.05), pool.embeddings[layer])

    return build


def closed_form(layer: str = "middle", discount: float = 1.0, **settings: Any) -> Callable[[Pool], Partition]:
    return lambda pool: ClosedFormPartition(pool.embeddings[layer], discount=discount, **settings)


CANDIDATES = {
    "counts": Candidate("counts", lambda pool: None, in_steps=False),
    "MLP, last layer": Candidate("partition", mlp("last")),
    "MLP, middle layer": Candidate("partition", mlp("middle")),
    "MLP, last layer, with counts": Candidate("combined", mlp("last")),
    "closed form": Candidate("partition", closed_form(), in_steps=False),
    "closed form, with counts": Candidate("combined", closed_form(), in_steps=False),
    "last layer": Candidate("partition", closed_form("last"), in_steps=False),
    "both layers": Candidate("partition", closed_form("both"), in_steps=False),
    "32 components": Candidate("partition", closed_form(components=32), in_steps=False),
    "256 components": Candidate("partition", closed_form(components=256), in_steps=False),
    "128 Fourier features": Candidate("partition", closed_form(features=128), in_steps=False),
    "1,024 Fourier features": Candidate("partition", closed_form(features=1024), in_steps=False),
    "half the length scale": Candidate("partition", closed_form(length_scale=0.5), in_steps=False),
    "twice the length scale": Candidate("partition", closed_form(length_scale=2.0), in_steps=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--streams", type=int, default=5)
    parser.add_argument("--only", help="a part of the names of pools and runs to study")
    options = parser.parse_args()
    path = Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else {"fixed": {}, "moving": {}, "checkpoints": {}}
    for folder in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        if (options.only or "") not in folder.name:
            continue
        if folder.name in POOLS:
            results["fixed"][folder.name] = study_fixed(load_pool(folder), *POOLS[folder.name], options.streams)
        else:
            run = load_run(folder)
            results["moving"][folder.name] = study_moving(run)
            results["checkpoints"][folder.name] = study_checkpoints(run)
        path.write_text(json.dumps(results, indent=1) + "\n")


def study_fixed(pool: Pool, batch: int, points: tuple[int, ...], streams: int) -> dict[str, Any]:
    """Return estimator → number of observed prompts → ``seen`` or ``unseen`` → score → (mean, deviation)."""
    found: dict[str, Any] = {}
    for label, candidate in {"one mean for all": None, **CANDIDATES}.items():
        partition = None if candidate is None else candidate.partition(pool)
        start = None if partition is None else deepcopy(partition.state_dict())
        runs = []
        for stream in range(streams):
            if partition is not None:
                partition.load_state_dict(start)
            estimator = (
                None if candidate is None else AccuracyEstimator(candidate.name, len(pool), partition, None, 1.0)
            )
            size = batch if candidate is not None and candidate.in_steps else None
            runs.append(list(scores_of(pool, estimator, size, points, stream)))
        found[label] = {
            point: {subset: summary([run[i][subset] for run in runs]) for subset in ("seen", "unseen")}
            for i, point in enumerate(points)
        }
        last = found[label][points[-1]]
        print(label, *(f"{part} {last[part]}" for part in last), sep="\n  ", flush=True)
    return found


def scores_of(
    pool: Pool, estimator: AccuracyEstimator | None, batch: int | None, points: tuple[int, ...], stream: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the scores on prompts seen and not seen at each of the points of one stream.

    The estimator sees ``batch`` prompts at once, or all up to the next point if ``batch`` is None. If ``estimator`` is
    None, the estimate of every prompt is the mean reward so far.
    """
    rng = np.random.default_rng([stream, 300])
    order_N = rng.permutation(len(pool))
    reward_NG, other_NS = pool.sample(rng)
    done = 0
    for point in points:
        while done < point:
            size = batch or point - done
            observe(estimator, order_N[done : done + size], reward_NG)
            done += size
        parts = {"seen": order_N[:point][-MOST:], "unseen": order_N[point:][:MOST]}
        mean = float(reward_NG[order_N[:point]].mean())
        found = {}
        for subset, rows_P in parts.items():
            mean_P = np.full(len(rows_P), mean) if estimator is None else estimator.mean(rows_P)
            exact_P = None if pool.accuracy_N is None else pool.accuracy_N[rows_P]
            found[subset] = scores(mean_P, other_NS[rows_P], exact_P)
            if estimator is not None:
                found[subset] |= coverages(estimator.beliefs(rows_P), other_NS[rows_P])
        yield found


def observe(estimator: AccuracyEstimator | None, rows_P: Ints, reward_NG: Floats, step: int = 0) -> None:
    """Show an estimator and its log Z a step, in the order of `DifficultyScheduler.observe`.

    ``step`` only tells the counts which visits of a prompt are older.
    """
    if estimator is None:
        return
    reward_PG = reward_NG[rows_P]
    estimator.observe(rows_P, reward_PG.tolist(), step_P=step)
    if estimator.partition is not None:
        reward_B = torch.from_numpy(reward_PG.ravel())
        estimator.partition.fit(np.repeat(rows_P, GROUP), reward_B, torch.zeros_like(reward_B), int(rows_P[0]))


def scores(estimate_P: Floats, other_PS: Floats, exact_P: Floats | None) -> dict[str, float]:
    truth_P = other_PS.mean(axis=1) if exact_P is None else exact_P
    noise_P = np.sqrt(2 * truth_P * (1 - truth_P) / (np.pi * TRIALS)) if exact_P is None else np.zeros_like(truth_P)
    error = np.abs(estimate_P.clip(0, 1) - truth_P).mean()
    return {"mae": float(error), "rank": spearman(estimate_P, truth_P), "noise": float(noise_P.mean())}


def coverages(beliefs: Beliefs, result_PS: Floats) -> dict[str, float]:
    """Return the coverage of 50% and 90% intervals by these rewards; nothing for point estimates."""
    if beliefs.are_points:
        return {}
    right_P, trials_P = result_PS.sum(axis=1).astype(int), np.full(len(result_PS), result_PS.shape[1])
    return {f"in_{round(100 * share)}": coverage(beliefs, right_P, trials_P, share) for share in (0.5, 0.9)}


def summary(runs: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Return mean and standard deviation of each score over the streams; None where a score is not defined."""
    found: dict[str, list[float | None]] = {}
    for name in runs[0]:
        values = np.array([run[name] for run in runs])
        defined = not np.isnan(values).any()
        found[name] = [round(float(value), 4) if defined else None for value in (values.mean(), values.std(ddof=1))]
    return found


@dataclass(frozen=True)
class Run:
    """A run of a moving policy: its prompts, and the rows and rewards [P, G] of the prompts of each step."""

    folder: Path
    config: Config
    prompts: list[Prompt]
    embeddings_NH: Tensor
    steps: list[tuple[Ints, Floats]]


def load_run(folder: Path) -> Run:
    config = load_config(folder / "config.yaml")
    policy = Policy.load(config.model, resolve_device("cpu"))
    prompts = unique_prompts(encode_tasks(policy, load_tasks(config)[0], config))
    row_of = {prompt.key: row for row, prompt in enumerate(prompts)}
    embeddings_NH = prompt_embeddings(policy, [prompt.token_ids for prompt in prompts], layer="middle")
    steps = [(np.array([row_of[key] for key in step["keys"]]), np.array(step["rewards"], dtype=float))
             for step in read_rows(folder / "groups.jsonl")]  # fmt: skip
    return Run(folder, config, prompts, embeddings_NH, steps)


def show(run: Run, estimator: AccuracyEstimator, step: int) -> None:
    """Show the estimator one of the run's steps."""
    rows_P, reward_PG = run.steps[step]
    reward_NG = np.zeros((len(run.prompts), GROUP))
    reward_NG[rows_P] = reward_PG
    observe(estimator, rows_P, reward_NG, step)


def study_moving(run: Run) -> dict[str, Any]:
    """Return γ → the errors of the estimates of each step's prompts, made before the step was observed.

    ``square`` is the mean squared error less the sampling noise of the observed means.
    """
    found = {}
    for discount in DISCOUNTS:
        partition = ClosedFormPartition(run.embeddings_NH, discount=discount)
        estimator = AccuracyEstimator("partition", len(run.prompts), partition, None, 1.0)
        parts = []
        show(run, estimator, 0)
        for step, (rows_P, reward_PG) in enumerate(run.steps[1:], start=1):
            error_P = estimator.mean(rows_P).clip(0, 1) - reward_PG.mean(axis=1)
            noise_P = reward_PG.var(axis=1, ddof=1) / GROUP
            errors = {"mae": np.abs(error_P), "square": error_P**2 - noise_P, "bias": error_P}
            means = {name: float(values_P.mean()) for name, values_P in errors.items()}
            parts.append(means | coverages(estimator.beliefs(rows_P), reward_PG))
            show(run, estimator, step)
        found[str(discount)] = mean_of(parts)
        print(run.folder.name, discount, found[str(discount)], flush=True)
    return found


def study_checkpoints(run: Run) -> dict[str, Any]:
    """Return estimator → ``seen`` or ``unseen`` → errors and coverage, means over the checkpoints.

    The estimates with the run's evidence up to a checkpoint are those from which it would select next. They are
    compared with the exact accuracies of up to ``MOST`` prompts at that checkpoint. The counts are those of
    ``paced_plus``.
    """
    partition = ClosedFormPartition(run.embeddings_NH)
    counts = RECIPES["paced_plus"].settings["estimator"]["discount"]
    combined = AccuracyEstimator("combined", len(run.prompts), partition, None, counts)
    estimators = {"closed form": combined.with_name("partition"), "closed form, with counts": combined}
    folders = {checkpoint_step(folder): folder for folder in list_checkpoints(run.folder)}
    rng = np.random.default_rng(300)
    seen_N = np.zeros(len(run.prompts), dtype=bool)
    parts: dict[str, dict[str, list[dict[str, float]]]] = {name: {"seen": [], "unseen": []} for name in estimators}
    for step, (rows_P, _) in enumerate(run.steps):
        show(run, combined, step)
        seen_N[rows_P] = True
        if step + 1 not in folders:
            continue
        policy = Policy.load(run.config.model, resolve_device("cpu"), folders[step + 1])
        for subset, mask_N in (("seen", seen_N), ("unseen", ~seen_N)):
            scored_P = rng.permutation(np.flatnonzero(mask_N))[:MOST]
            if len(scored_P) == 0:
                continue
            prompts = [run.prompts[row] for row in scored_P]
            exact_P = np.array(true_accuracies(policy, prompts, 1.0, run.config.optimizer.tokens_per_micro_batch))
            result_PS = (rng.random((len(scored_P), TRIALS)) < exact_P[:, None]).astype(float)
            for name, estimator in estimators.items():
                error_P = estimator.mean(scored_P).clip(0, 1) - exact_P
                errors = {"mae": float(np.abs(error_P).mean()), "bias": float(error_P.mean())}
                parts[name][subset].append(errors | coverages(estimator.beliefs(scored_P), result_PS))
    found = {name: {part: mean_of(scores) for part, scores in subsets.items()} for name, subsets in parts.items()}
    print(run.folder.name, *(f"{name} {scores}" for name, scores in found.items()), sep="\n  ", flush=True)
    return found


def mean_of(parts: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each score; nothing if there are no parts."""
    return {name: round(float(np.mean([part[name] for part in parts])), 5) for name in (parts[0] if parts else ())}


if __name__ == "__main__":
    main()
