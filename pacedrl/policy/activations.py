"""Saving device memory in the update: activations are recomputed in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pacedrl.errors import InputError
from pacedrl.policy.attention import attention, current_pattern
from pacedrl.policy.loading import find_decoder


def uses_checkpointing(causal_lm: Any, setting: bool | None, device: torch.device) -> bool:
    """Whether an update uses gradient checkpointing; without a ``setting``, it does on a GPU if the model can."""
    return device.type == "cuda" and bool(_layers(causal_lm)) if setting is None else setting


@contextmanager
def gradient_checkpointing(causal_lm: Any, enabled: bool) -> Iterator[None]:
    """Recompute each layer's activations in the backward pass while the context lasts.

    Raises what `checkpointed_layers` raises.
    """
    if not enabled:
        yield
        return
    layers = checkpointed_layers(causal_lm)
    config = find_decoder(causal_lm).config
    for layer in layers:
        # transformers checkpoints layers in training mode only, but the layer itself must run in eval mode.
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_checkpoint_in_eval_mode, layer, config)
    try:
        yield
    finally:
        for layer in layers:
            layer.training = layer.gradient_checkpointing = False


def checkpointed_layers(causal_lm: Any) -> list[GradientCheckpointingLayer]:
    """Return the layers whose activations can be recomputed.

    Raises InputError for a model whose layers transformers cannot checkpoint.
    """
    layers = _layers(causal_lm)
    if not layers:
        raise InputError(
            f"optimizer.gradient_checkpointing: {type(causal_lm).__name__} does not support it; set it to false"
        )
    return layers


def _layers(causal_lm: Any) -> list[GradientCheckpointingLayer]:
    return [module for module in causal_lm.modules() if isinstance(module, GradientCheckpointingLayer)]


def _checkpoint_in_eval_mode(layer: torch.nn.Module, config: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a layer under activation checkpointing, with dropout off and the same attention pattern when recomputed."""
    pattern = current_pattern.get()

    def run(*values: Any) -> Any:
        mode, layer.training = layer.training, False
        try:
            with attention(config, pattern):
                return function(*values)
        finally:
            layer.training = mode

    return checkpoint(run, *inputs, use_reentrant=False)
