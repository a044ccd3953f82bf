"""Measure how projecting embeddings, and rescoring a share of them per step, affects the estimates on a finished run.

    python benchmarks/projection.py runs/results/skills_skewed/runs/grpo/seed500

Goes through the run's groups.jsonl step by step: each estimator first predicts the accuracies of the step's prompts,
then observes their verdicts, as in training. The run should have selected prompts in another way (grpo: uniformly), so
that no estimator is judged on prompts that it chose. Prints the mean over all groups of |estimate − observed|, the
Brier score and the rank correlation. The observed accuracy of G completions itself has an error of √(p(1−p)/G), which
is the same for all estimators.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from pacedrl.config import load_config
from pacedrl.method import DifficultyScheduler, LogPartition, PartitionLearner, Rollouts, project
from pacedrl.method.estimator import spearman
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, unique_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--components", default="32,16,8,4")
    parser.add_argument("--shares", default="0.5,0.1,0.02")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml")
    policy = Policy.load(config.model, resolve_device("cpu"))
    prompts = unique_prompts(encode_tasks(policy, load_tasks(config)[0], config))
    keys = [prompt.key for prompt in prompts]
    whole = prompt_embeddings(policy, [prompt.token_ids for prompt in prompts])
    steps = [json.loads(line) for line in (options.run / "groups.jsonl").read_text().splitlines()]
    print(f"{len(keys)} prompts of {whole.shape[1]} features, {len(steps)} steps of {len(steps[0]['keys'])} groups")
    print(f"{'components':>10}{'share':>8}{'|error|':>10}{'Brier':>9}{'rank':>8}")
    components = [int(part) for part in options.components.split(",")]
    shares = [float(part) for part in options.shares.split(",")]
    found = []
    for size, share in [(None, 1.0), *((size, 1.0) for size in components), *((None, share) for share in shares)]:
        embeddings = whole if size is None else project(whole, size)
        error, brier, rank = replay_run(keys, embeddings, steps, share, config.partition.prior_accuracy)
        print(f"{size or whole.shape[1]:>10}{share:>8g}{error:>10.4f}{brier:>9.4f}{rank:>8.3f}", flush=True)
        row = {"components": size or whole.shape[1], "share": share, "error": error, "brier": brier, "rank": rank}
        found.append(row)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def replay_run(
    keys: list[str], embeddings: torch.Tensor, steps: list[dict[str, list]], share: float, prior: float
) -> tuple[float, float, float]:
    torch.manual_seed(0)
    learner = PartitionLearner(LogPartition(embeddings, 0.05, prior_accuracy=prior))
    scheduler = DifficultyScheduler(keys, embeddings, learner=learner, rescore_share=share)
    estimates, observed, squares = [], [], []
    for step in steps:
        # Selection would have seen these estimates, which are stale if only a share is rescored.
        accuracy_N = scheduler.accuracy_estimates()
        names: list[str] = []
        rewards: list[float] = []
        for key, verdicts in zip(step["keys"], step["rewards"], strict=True):
            known = [verdict for verdict in verdicts if verdict is not None]
            if known:
                estimate = float(accuracy_N[scheduler.index[key]])
                estimates.append(estimate)
                observed.append(float(np.mean(known)))
                squares += [(estimate - verdict) ** 2 for verdict in known]
                names += [key] * len(known)
                rewards += known
        scheduler.observe(Rollouts(names, rewards))
    gap = np.abs(np.array(estimates) - np.array(observed))
    return float(gap.mean()), float(np.mean(squares)), spearman(np.array(estimates), np.array(observed))


if __name__ == "__main__":
    main()
