"""Copies of a model's weights in the precision of its matrix multiplications, kept while it samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear


@contextmanager
def half_weights(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Let linear layers multiply by copies of their float32 weights in ``dtype`` while the context lasts.

    The result is what autocast to ``dtype`` gives, bit for bit, because only the weights that autocast would cast are
    copied. Autocast casts them again at every token, which reads and writes four times as many bytes as the
    multiplication itself. The parameters stay as they are, so that they can be saved and sent meanwhile; they must not
    change, and gradients do not flow into them. Weights shared with an embedding are copied for the head alone.
    """
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and _multiplies(module)]
    for layer in layers:
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        layer.forward = partial(_linear, layer.weight.detach().to(dtype), bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _multiplies(layer: torch.nn.Linear) -> bool:
    """Whether the layer does nothing but multiply by float32 weights. A subclass may do it in its own way."""
    return type(layer).forward is torch.nn.Linear.forward and layer.weight.dtype == torch.float32


def _linear(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    return linear(hidden.to(weight.dtype), weight, bias)
