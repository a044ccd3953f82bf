"""Sample a fixed policy once, for the study of accuracy estimates: make results-estimates.

    python docs/results/estimates_data.py docs/results/words.yaml runs/results/estimates/words --samples 72
    python docs/results/estimates_data.py docs/results/skills_even.yaml runs/results/estimates/even --exact --pool 4

Writes FOLDER/rewards.npy, the reward of each completion of each training prompt ([N, S]), or with ``--exact``
FOLDER/accuracy.npy, the probability of each prompt's right answer ([N]); and FOLDER/middle.npy and last.npy, the mean
hidden states of two layers over each prompt's tokens ([N, H]).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from pacedrl.config import TaskConfig, load_config
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.loading import resolve_device
from pacedrl.policy.passes import true_accuracies
from pacedrl.policy.policy import Policy
from pacedrl.rollouts.collect import sample_groups, score_groups
from pacedrl.rollouts.engines import build_sampler, training_settings
from pacedrl.rollouts.tasks import encode_tasks, load_tasks, unique_prompts
from pacedrl.tasks.pool import VerifierPool

SEED = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=72)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--pool", type=int, default=1, help="multiply the size of each training task of skills by this")
    options = parser.parse_args()
    config = load_config(options.config)
    train = [development(task, options.pool) for task in config.data.train]
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": train})})
    policy = Policy.load(config.model, resolve_device("auto"))
    tasks = encode_tasks(policy, load_tasks(config)[0], config)
    prompts = unique_prompts(tasks)
    ids = [prompt.token_ids for prompt in prompts]
    options.folder.mkdir(parents=True, exist_ok=True)
    for layer in ("middle", "last"):
        np.save(options.folder / f"{layer}.npy", prompt_embeddings(policy, ids, layer=layer).numpy())
    if options.exact:
        accuracy = true_accuracies(policy, prompts, 1.0, config.optimizer.tokens_per_micro_batch)
        np.save(options.folder / "accuracy.npy", np.array(accuracy))
        return
    settings = replace(training_settings(config), group_size=options.samples)
    groups = sample_groups(build_sampler(config, policy), prompts, settings, (SEED, "estimates"), advance=print)
    with VerifierPool(config.verifier.workers, config.verifier.timeout_s) as pool:
        score_groups(pool, groups, {task.name: task for task in tasks})
    np.save(options.folder / "rewards.npy", np.array([group.rewards for group in groups]))


def development(task: TaskConfig, times: int) -> TaskConfig:
    """Return a task of skills with ``SEED`` and ``times`` as many prompts; return other tasks as they are."""
    if task.source != "skills":
        return task
    return task.model_copy(update={"options": task.options | {"seed": SEED, "size": task.options["size"] * times}})


if __name__ == "__main__":
    main()
