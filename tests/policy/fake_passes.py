"""Forward and backward passes of whole models over tensors without values, to count the memory that they hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig

from pacedrl.policy import attention
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.loading import find_decoder
from pacedrl.policy.logprobs import Head
from pacedrl.policy.policy import Policy

CPU = torch.device("cpu")
"""The tensors claim to be on the CPU: without CUDA, torch runs no backward pass for a GPU. Their sizes are the same."""


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, each once, and the ``peak`` of that sum."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        name = storage._cdata
        if name not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, name)

    def _remove(self, name: int) -> None:
        self.now -= self.sizes.pop(name)


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Attend as on a GPU, with the kernel that takes masks; a mask becomes a bias of the states' type."""
    repeats = query.shape[1] // key.shape[1]
    states = [query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)]
    query, key, value = (state.to(torch.bfloat16) for state in states)
    shape = (*query.shape[:3], key.shape[2])
    bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).expand(shape)
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, mask is None, scale=scale
    )[0]
    return output


def fake_policy(config: PretrainedConfig) -> Policy:
    """Return a policy under bfloat16 autocast whose weights have no values. Call it within `FakeTensorMode`."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config).eval()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(torch.empty(parameter.shape))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    model.tie_weights()
    policy = Policy.__new__(Policy)  # whose constructor compares values
    policy.model = policy.causal_lm = model
    policy.device, policy.mixed_precision = CPU, True
    policy.decoder, policy.takes_patterns, policy.sharded = find_decoder(model), True, None
    policy._head = Head(model.get_output_embeddings().weight)
    return policy


def counted_bytes(
    config: PretrainedConfig, prompt: int, completions: Sequence[int], checkpointed: bool, monkeypatch: Any
) -> tuple[Policy, int]:
    """Return the policy, and the peak of what two passes hold besides weights and moments of AdamW.

    A pass has completions of the given lengths, of one prompt. The second pass adds to the gradients of the first.
    """
    monkeypatch.setattr(attention, "_dot_product", fused_attention)
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy = fake_policy(config)
        with Held() as held, gradient_checkpointing(policy.causal_lm, checkpointed):
            for _ in range(2):
                ids = [[5] * length for length in completions]
                logprobs_BT, _, _ = policy.logprobs([[7] * prompt] * len(ids), ids)
                logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]
                del logprobs_BT
    return policy, held.peak
