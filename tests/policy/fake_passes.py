"""Forward and backward passes of whole models over tensors without values, to count the memory that they hold."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PretrainedConfig

from pacedrl.policy import attention, flex, logprobs
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.flex import flex_row
from pacedrl.policy.loading import find_decoder
from pacedrl.policy.logprobs import Head
from pacedrl.policy.policy import Policy

Attention = Literal["padded", "flex", "eager"]
"""The attention of the update: padded with a mask, FlexAttention, or transformers' own, which shares no prompts."""
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


class _SavedByFlexAttention(torch.autograd.Function):
    """Makes and saves what FlexAttention's kernel does: it repeats no keys, and has one number more for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)  # also with its strides
        logsumexp = torch.empty(query.shape[:3])
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(state) for state in ctx.saved_tensors[:3])


def flex_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Stand in for compiled FlexAttention, which a CPU cannot pass backward."""
    output: Tensor = _SavedByFlexAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply as a GPU does, without the copies in float32 that a CPU needs."""
    return torch.empty(len(left), right.shape[1])


def fake_policy(config: PretrainedConfig, kind: Attention) -> Policy:
    """Return a policy under bfloat16 autocast whose weights have no values. Call it within `FakeTensorMode`."""
    with torch.device("meta"):
        implementation = "eager" if kind == "eager" else "sdpa"
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
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
    policy.decoder, policy.takes_patterns, policy.sharded = find_decoder(model), kind != "eager", None
    policy.packing = flex_row if kind == "flex" else attention.shared_prefix
    policy.pad_id = 0
    policy._head = Head(model.get_output_embeddings().weight)
    return policy


def counted_bytes(
    config: PretrainedConfig,
    prompt: int,
    completions: Sequence[int],
    checkpointed: bool,
    monkeypatch: Any,
    kind: Attention = "padded",
) -> tuple[Policy, int]:
    """Return the policy, and the peak of what two passes hold besides weights and moments of AdamW.

    A pass has completions of the given lengths, of one prompt. The second pass adds to the gradients of the first.
    """
    monkeypatch.setattr(attention, "_dot_product", fused_attention)
    monkeypatch.setattr(flex, "compiled_attention", lambda: flex_attention)
    monkeypatch.setattr(logprobs, "product", product)
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy = fake_policy(config, kind)
        with Held() as held, gradient_checkpointing(policy.causal_lm, checkpointed):
            for _ in range(2):
                ids = [[5] * length for length in completions]
                logprobs_BT, _, _ = policy.logprobs([[7] * prompt] * len(ids), ids)
                logprobs_BT.sum().backward()  # type: ignore[no-untyped-call]
                del logprobs_BT
    return policy, held.peak
