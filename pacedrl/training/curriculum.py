"""The difficulty scheduler of a run, built from its configuration."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pacedrl.config import Config
from pacedrl.config.method import ClosedFormPartitionConfig
from pacedrl.method import ClosedFormPartition, DifficultyScheduler, LogPartition, MlpPartition, ReplayBuffer
from pacedrl.method.beliefs import Partition
from pacedrl.policy.embeddings import prompt_embeddings
from pacedrl.policy.policy import Policy
from pacedrl.types import Prompt
from pacedrl.view import View


def initial_embeddings(config: Config, policy: Policy, prompts: Sequence[Prompt], view: View) -> Tensor | None:
    """Return the embeddings of the prompts, the input of log Z: [N, H]; None if it is not needed.

    ``policy`` must be the initial policy, also when a run is resumed: log Z reads the same embeddings for the whole
    run.
    """
    if not config.needs_partition:
        return None
    view.phase("embedding prompts", len(prompts))
    ids = [prompt.token_ids for prompt in prompts]
    return prompt_embeddings(policy, ids, view.advance, config.partition.embedding, config.partition.layer)


def build_scheduler(
    config: Config, keys: Sequence[str], embeddings_NH: Tensor | None, device: torch.device | None = None
) -> DifficultyScheduler:
    """Build the difficulty scheduler; ``embeddings_NH`` is None if nothing reads log Z.

    An MLP is initialised from torch's global generator. log Z is computed on ``device``, by default the device of the
    embeddings.
    """
    replay = config.replay
    return DifficultyScheduler(
        keys,
        embeddings_NH,
        partition="mlp" if embeddings_NH is None else _partition(config, embeddings_NH, device),
        replay=ReplayBuffer(replay.capacity if replay.enabled else 0, replay.admit, replay.max_age),
        selection=config.selection.method,
        estimator=config.estimator.name,
        target_accuracy=config.selection.target_accuracy,
        explore_fraction=config.selection.explore_fraction,
        retain_fraction=config.selection.retain_fraction,
        cooldown_steps=config.selection.cooldown_steps,
        candidates=config.selection.candidates,
        group_size=config.sampling.group_size,
        seed=config.run.seed,
        **config.estimator.model_dump(exclude={"name"}),
    )


def _partition(config: Config, embeddings_NH: Tensor, device: torch.device | None) -> Partition:
    settings, beta = config.partition, config.objective.partition_beta
    device = device or embeddings_NH.device
    if isinstance(settings, ClosedFormPartitionConfig):
        return ClosedFormPartition(
            embeddings_NH,
            beta,
            settings.prior_accuracy,
            discount=settings.discount,
            components=settings.components,
            features=settings.features,
            length_scale=settings.length_scale,
            device=device,
        )
    network = LogPartition(embeddings_NH, beta, settings.prior_accuracy, settings.hidden_size, settings.dropout)
    own = settings.learning_rate
    return MlpPartition(
        network.to(device),
        embeddings_NH,
        learning_rate=config.optimizer.learning_rate if own is None else own,
        weight_decay=settings.weight_decay,
        fit_steps=settings.fit_steps,
        scale_by_fan_in=own is not None,
    )
