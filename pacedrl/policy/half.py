"""Copies of a model's weights in the precision of its matrix multiplications, kept while it samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Linear


@contextmanager
def half_weights(causal_lm: Any, dtype: torch.dtype = torch.bfloat16) -> Iterator[None]:
    """Let linear layers multiply by copies of their float32 weights in ``dtype`` while the context lasts.

    Call the model under autocast to ``dtype``. It then computes what it computes without the copies, bit for bit,
    because only weights that autocast would cast are copied. Autocast casts them again at every token, which moves four
    times as many bytes as the multiplication itself.

    The copies hide the parameters from the layers alone: the parameters can be saved or sent meanwhile. They must not
    change, and gradients do not flow. A weight shared with an embedding is copied for the head alone.
    """
    head, layers = causal_lm.get_output_embeddings(), []
    for layer in causal_lm.modules():
        if isinstance(layer, Linear) and layer.weight.dtype == torch.float32:
            # A subclass may compute in its own way, except the head, whose weight is always multiplied in ``dtype``.
            usual = type(layer).forward is Linear.forward
            if usual or layer is head:
                # An instance's own attribute takes precedence over the parameter of the same name.
                layer.__dict__["weight"] = layer.weight.detach().to(dtype)
                layers.append(layer)
            if usual and layer.bias is not None:
                layer.__dict__["bias"] = layer.bias.detach().to(dtype)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["weight"]
            layer.__dict__.pop("bias", None)
