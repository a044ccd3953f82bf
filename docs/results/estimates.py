"""Compare estimates of prompts' accuracies, for fixed policies and for moving ones: make results-estimates.

    python docs/results/estimates.py runs/results/estimates --streams 5

FOLDER/words, FOLDER/even and FOLDER/skewed hold what estimates_data.py wrote about a fixed policy and its prompts. A
stream shows each estimator batches of P groups of 8 completions, each prompt at most once, in a random order. At some
numbers of observed prompts the estimates of the prompts seen so far and of up to 500 others are compared with the
truth. That is exact for the tiny model. For SmolLM2 it is the mean of the 64 completions that the stream does not use;
``noise`` is the error that a perfect estimate would have against it.

Coverage is measured for estimators that give a distribution. From each belief accuracies are drawn; where the truth is
sampled, so are completions of as many as the truth has, so that its noise is in the belief too. An interval of 90%
covers a truth with at least 5% of the draws below it and at least 5% above it.

FOLDER/moving_NAME are runs of ``grpo``, whose policy moves. Their steps are replayed: each step's accuracies are
estimated before they are observed (prequential), with one γ after another.

Writes estimates.json beside this file: mean and standard deviation over the streams.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pacedrl.config import load_config
from pacedrl.logs import read_rows
from pacedrl.method import ClosedFormPartition, LogPartition, MlpPartition
from pacedrl.method.beliefs import AccuracyEstimator, EstimatorName, Partition
from pacedrl.method.estimator import Beliefs, spearman
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, unique_prompts

GROUP = 8
MOST = 500
"""Maximum number of prompts not seen on which estimates are scored."""
DRAWS = 200
POOLS = {
    "words": (8, (32, 64, 128, 256)),
    "even": (32, (32, 64, 128, 256, 512, 1024, 2048)),
    "skewed": (32, (32, 64, 128, 256, 512, 1024, 2048)),
}
"""Prompts per step, and the numbers of observed prompts at which estimates are scored."""
DISCOUNTS = (0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
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

    def groups(self, rng: np.random.Generator) -> tuple[Floats, Floats, int | None]:
        """Return one group's rewards for each prompt [N, G], its true accuracy, and the size of the truth's sample."""
        if self.reward_NS is None:
            return (rng.random((len(self), GROUP)) < self.accuracy_N[:, None]).astype(float), self.accuracy_N, None
        mixed_NS = rng.permuted(self.reward_NS, axis=1)
        return mixed_NS[:, :GROUP], mixed_NS[:, GROUP:].mean(axis=1), mixed_NS.shape[1] - GROUP


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
    """Scale features, so that those of two layers may stand side by side in float16."""
    values_NH = embeddings_NH.float()
    return (values_NH - values_NH.mean(dim=0)) / values_NH.std(dim=0).clamp_min(1e-6)


@dataclass(frozen=True)
class Candidate:
    """An estimator, its log Z and whether it must see one batch after another.

    Without forgetting the closed form depends on the sum over all batches only, so it may see them at once.
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
    "64 components": Candidate("partition", closed_form(components=64), in_steps=False),
    "256 components": Candidate("partition", closed_form(components=256), in_steps=False),
    "128 Fourier features": Candidate("partition", closed_form(features=128), in_steps=False),
    "256 Fourier features": Candidate("partition", closed_form(features=256), in_steps=False),
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
    results = json.loads(path.read_text()) if path.exists() else {"fixed": {}, "moving": {}}
    for folder in sorted(folder for folder in options.folder.iterdir() if (options.only or "") in folder.name):
        if folder.name in POOLS:
            results["fixed"][folder.name] = study_fixed(load_pool(folder), *POOLS[folder.name], options.streams)
        else:
            results["moving"][folder.name] = study_moving(folder)
        path.write_text(json.dumps(results, indent=1) + "\n")


def study_fixed(pool: Pool, batch: int, points: tuple[int, ...], streams: int) -> dict[str, Any]:
    """Return estimator → number of observed prompts → ``seen`` or ``unseen`` → score → (mean, deviation)."""
    found: dict[str, Any] = {}
    for label, candidate in {"one mean for all": None, **CANDIDATES}.items():
        runs = [list(scores_of(pool, candidate, batch, points, stream)) for stream in range(streams)]
        found[label] = {
            point: {subset: summary([run[i][subset] for run in runs]) for subset in ("seen", "unseen")}
            for i, point in enumerate(points)
        }
        last = found[label][points[-1]]
        print(label, *(f"{part} {last[part]}" for part in last), sep="\n  ", flush=True)
    return found


def scores_of(
    pool: Pool, candidate: Candidate | None, batch: int, points: tuple[int, ...], stream: int
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the scores on prompts seen and not seen at each of the points of one stream."""
    rng = np.random.default_rng([stream, 300])
    order_N = rng.permutation(len(pool))
    reward_NG, truth_N, trials = pool.groups(rng)
    partition = None if candidate is None else candidate.partition(pool)
    estimator = None if candidate is None else AccuracyEstimator(candidate.name, len(pool), partition, None, 1.0)
    done = 0
    for point in points:
        while done < point:
            size = batch if candidate is not None and candidate.in_steps else point - done
            observe(estimator, order_N[done : done + size], reward_NG)
            done += size
        parts = {"seen": order_N[:point], "unseen": order_N[point:][:MOST]}
        mean = float(reward_NG[order_N[:point]].mean())
        yield {
            subset: scores(
                np.full(len(rows_P), mean) if estimator is None else estimator.mean(rows_P),
                None if estimator is None else estimator.beliefs(rows_P),
                truth_N[rows_P],
                trials,
                rng,
            )
            for subset, rows_P in parts.items()
        }


def observe(estimator: AccuracyEstimator | None, rows_P: Ints, reward_NG: Floats) -> None:
    """Show an estimator and its log Z a step, in the order of `DifficultyScheduler.observe`."""
    if estimator is None:
        return
    reward_PG = reward_NG[rows_P]
    estimator.observe(rows_P, reward_PG.tolist())
    if estimator.partition is not None:
        reward_B = torch.from_numpy(reward_PG.ravel())
        estimator.partition.fit(np.repeat(rows_P, GROUP), reward_B, torch.zeros_like(reward_B), int(rows_P[0]))


def scores(
    estimate_P: Floats, beliefs: Beliefs | None, truth_P: Floats, trials: int | None, rng: np.random.Generator
) -> dict[str, float]:
    noise_P = np.zeros_like(truth_P) if trials is None else np.sqrt(2 * truth_P * (1 - truth_P) / (np.pi * trials))
    found = {
        "mae": float(np.abs(estimate_P.clip(0, 1) - truth_P).mean()),
        "rank": spearman(estimate_P, truth_P),
        "noise": float(noise_P.mean()),
    }
    if beliefs is None or beliefs.are_points:
        return found
    place_P = np.abs(places(beliefs, truth_P, trials, rng) - 0.5)
    return found | {"in_50": float((place_P < 0.25).mean()), "in_90": float((place_P < 0.45).mean())}


def places(beliefs: Beliefs, truth_P: Floats, trials: int | None, rng: np.random.Generator) -> Floats:
    """Return the share of draws from each belief that lie below the truth; ties, after sampling, are broken at random.

    If the beliefs are right, the places are distributed uniformly over [0, 1].
    """
    draws_DP = np.stack([beliefs.draw(rng) for _ in range(DRAWS)])
    if trials is not None:
        draws_DP = (rng.binomial(trials, draws_DP.clip(0, 1)) + rng.random(draws_DP.shape)) / (trials + 1)
        truth_P = (truth_P * trials + rng.random(truth_P.shape)) / (trials + 1)
    places_P: Floats = (draws_DP < truth_P).mean(axis=0)
    return places_P


def summary(runs: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Return mean and standard deviation of each score over the streams; None where a score is not defined."""
    found: dict[str, list[float | None]] = {}
    for name in runs[0]:
        values = np.array([run[name] for run in runs])
        defined = not np.isnan(values).any()
        found[name] = [round(float(value), 4) if defined else None for value in (values.mean(), values.std(ddof=1))]
    return found


def study_moving(run: Path) -> dict[str, Any]:
    """Return γ → the errors of the estimates of each step's prompts, made before the step was observed.

    ``square`` is the mean squared error less the sampling noise of the observed means.
    """
    config = load_config(run / "config.yaml")
    policy = Policy.load(config.model, resolve_device("cpu"))
    prompts = unique_prompts(encode_tasks(policy, load_tasks(config)[0], config))
    row_of = {prompt.key: row for row, prompt in enumerate(prompts)}
    embeddings_NH = prompt_embeddings(policy, [prompt.token_ids for prompt in prompts], layer="middle")
    steps = [(np.array([row_of[key] for key in step["keys"]]), np.array(step["rewards"], dtype=float))
             for step in read_rows(run / "groups.jsonl")]  # fmt: skip
    found = {}
    for discount in DISCOUNTS:
        partition = ClosedFormPartition(embeddings_NH, discount=discount)
        estimator = AccuracyEstimator("partition", len(prompts), partition, None, 1.0)
        parts = []
        for i, (rows_P, reward_PG) in enumerate(steps):
            observed_P = reward_PG.mean(axis=1)
            if i > 0:
                beliefs = estimator.beliefs(rows_P)
                error_P = estimator.mean(rows_P).clip(0, 1) - observed_P
                noise_P = reward_PG.var(axis=1, ddof=1) / GROUP
                place_P = np.abs(places(beliefs, observed_P, GROUP, np.random.default_rng(i)) - 0.5)
                parts.append([np.abs(error_P), error_P**2 - noise_P, error_P, place_P < 0.25, place_P < 0.45])
            reward_NG = np.zeros((len(prompts), GROUP))
            reward_NG[rows_P] = reward_PG
            observe(estimator, rows_P, reward_NG)
        means = np.concatenate(parts, axis=1).mean(axis=1)
        names = ("mae", "square", "bias", "in_50", "in_90")
        found[str(discount)] = {name: round(float(v), 5) for name, v in zip(names, means, strict=True)}
        print(run.name, discount, found[str(discount)], flush=True)
    return found


if __name__ == "__main__":
    main()
