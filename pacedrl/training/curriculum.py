"""The difficulty scheduler of a run, built from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.method import DifficultyScheduler, LogPartition, PartitionLearner, ReplayBuffer, project
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.policy import Policy


def initial_embeddings(
    config: Config, policy: Policy, prompt_ids: Sequence[Sequence[int]], advance: Callable[[int], None]
) -> Tensor:
    """Embeddings of the prompts, the input of log Z: [N, H] or [N, ``partition.projection``].

    ``policy`` must be the initial policy, also when a run is resumed: log Z reads the same embeddings for the whole
    run. Raises InputError for a projection to more dimensions than the embeddings have.
    """
    embeddings_NH = prompt_embeddings(policy, prompt_ids, advance, config.partition.embedding)
    if config.partition.projection is None:
        return embeddings_NH
    try:
        return project(embeddings_NH, config.partition.projection)
    except ValueError as error:
        raise InputError(f"partition.projection: {error}; lower it, or leave it out") from None


def build_scheduler(
    config: Config, keys: Sequence[str], embeddings_NH: Tensor | None, device: torch.device | None = None
) -> DifficultyScheduler:
    """Build the difficulty scheduler; ``embeddings_NH`` is None if nothing reads log Z.

    The partition function is initialised from torch's global generator. It runs on ``device``, by default the device of
    the embeddings.
    """
    return DifficultyScheduler(
        keys,
        embeddings_NH,
        learner=None if embeddings_NH is None else _partition_learner(config, embeddings_NH, device),
        replay=_replay_buffer(config),
        selection=config.selection.method,
        estimator=config.estimator.name,
        target_accuracy=config.selection.target_accuracy,
        explore_fraction=config.selection.explore_fraction,
        cooldown_steps=config.selection.cooldown_steps,
        rescore_share=config.partition.rescore_share,
        seed=config.run.seed,
        **config.estimator.model_dump(exclude={"name"}),
    )


def _replay_buffer(config: Config) -> ReplayBuffer:
    settings = config.replay
    return ReplayBuffer(settings.capacity if settings.enabled else 0, settings.admit, settings.max_age)


def _partition_learner(config: Config, embeddings_NH: Tensor, device: torch.device | None) -> PartitionLearner:
    settings = config.partition
    partition = LogPartition(
        embeddings_NH,
        beta=config.objective.partition_beta,
        prior_accuracy=settings.prior_accuracy,
        hidden_size=settings.hidden_size,
        dropout=settings.dropout,
    )
    own = settings.learning_rate
    return PartitionLearner(
        partition.to(device or embeddings_NH.device),
        learning_rate=config.optimizer.learning_rate if own is None else own,
        weight_decay=settings.weight_decay,
        fit_steps=settings.fit_steps,
        scale_by_fan_in=own is not None,
    )
