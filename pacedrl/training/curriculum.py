"""The difficulty scheduler of a run, built from its configuration."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.method import DifficultyScheduler, LogPartition, PartitionLearner, ReplayBuffer, project
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.policy import Policy
from pacedrl.types import Prompt
from pacedrl.view import View


def initial_embeddings(config: Config, policy: Policy, prompts: Sequence[Prompt], view: View) -> Tensor | None:
    """Embeddings of the prompts, the input of log Z: [N, H] or [N, ``partition.projection``]; None if it is not needed.

    ``policy`` must be the initial policy, also when a run is resumed: log Z reads the same embeddings for the whole
    run. Raises InputError for a projection to more dimensions than the embeddings have.
    """
    if not config.needs_partition:
        return None
    view.phase("embedding prompts", len(prompts))
    embeddings_NH = prompt_embeddings(
        policy, [prompt.token_ids for prompt in prompts], view.advance, config.partition.embedding
    )
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
    replay = config.replay
    return DifficultyScheduler(
        keys,
        embeddings_NH,
        learner=None if embeddings_NH is None else _partition_learner(config, embeddings_NH, device),
        replay=ReplayBuffer(replay.capacity if replay.enabled else 0, replay.admit, replay.max_age),
        selection=config.selection.method,
        estimator=config.estimator.name,
        target_accuracy=config.selection.target_accuracy,
        explore_fraction=config.selection.explore_fraction,
        cooldown_steps=config.selection.cooldown_steps,
        rescore_share=config.partition.rescore_share,
        seed=config.run.seed,
        **config.estimator.model_dump(exclude={"name"}),
    )


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
