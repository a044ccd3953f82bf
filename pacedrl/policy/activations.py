"""Saving device memory in the update: activations are recomputed in the backward pass, or kept in host memory."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from pacedrl.errors import InputError
from pacedrl.policy.attention import attention, current_pattern
from pacedrl.policy.loading import find_decoder

OFFLOADED_ELEMENTS = 2**14
"""Smaller tensors stay on the device, because moving them costs more than the memory they occupy."""


@contextmanager
def gradient_checkpointing(causal_lm: Any, enabled: bool) -> Iterator[None]:
    """Recompute each layer's activations in the backward pass while the context lasts.

    Raises InputError for a model whose layers transformers cannot checkpoint.
    """
    if not enabled:
        yield
        return
    layers = [module for module in causal_lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(f"optimizer.gradient_checkpointing: {type(causal_lm).__name__} does not support it")
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


@contextmanager
def activation_offload(model: torch.nn.Module, enabled: bool) -> Iterator[None]:
    """Keep the tensors that the backward pass needs in host memory, except weights and small tensors.

    Meant for forward passes on a GPU; on a CPU it only copies.
    """
    if not enabled:
        yield
        return
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(
        partial(_to_host, weights), lambda saved: saved[1].to(saved[0], non_blocking=True)
    ):
        yield


def _to_host(weights: Collection[int], tensor: Tensor) -> tuple[torch.device, Tensor]:
    if tensor.numel() < OFFLOADED_ELEMENTS or tensor.untyped_storage().data_ptr() in weights:
        return tensor.device, tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    host.copy_(tensor, non_blocking=tensor.is_cuda)
    return tensor.device, host


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
