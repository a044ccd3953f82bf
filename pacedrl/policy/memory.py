"""The memory that a run needs on its device, estimated from the shapes of the model.

The formulas count what torch keeps: `tests/policy/test_memory.py` compares them with passes over tensors without
values. They leave out what the allocator loses to fragments, and torch's own memory (about 1 GiB on a GPU).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pacedrl.config import Config
from pacedrl.policy.activations import uses_checkpointing
from pacedrl.policy.flex import padded_length
from pacedrl.policy.passes import Pass
from pacedrl.policy.policy import Policy

GIB = 2**30
ADAM_BYTES = 16
"""Bytes per trained float32 parameter: weight, gradient and the two moments of AdamW."""
LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**31}
"""Bytes of the logits that are held at once and of their temporaries, at most, by the type of device."""


@dataclass(frozen=True)
class Memory:
    """Bytes: ``states`` are held all the time, ``sampling`` and ``update`` one after the other."""

    states: float
    sampling: float
    update: float

    @property
    def peak(self) -> float:
        return self.states + max(self.sampling, self.update)


def estimate(policy: Policy, config: Config, device_bytes: float = 0.0) -> Memory:
    """Estimate the memory of one process that shares its weights with no other.

    ``device_bytes`` is the size of the device, of which vLLM takes the share ``sampling.gpu_memory``.
    """
    weights = list(policy.model.parameters())
    own = sum(ADAM_BYTES * p.numel() if p.requires_grad else p.numel() * p.element_size() for p in weights)
    copied = config.objective.needs_reference and config.model.lora is None
    states = own + sum(p.numel() * p.element_size() for p in weights) * copied
    one_pass = largest_pass(config, policy.takes_patterns, policy.pads_attention)
    checkpointed = uses_checkpointing(policy.causal_lm, config.optimizer.gradient_checkpointing, policy.device)
    return Memory(states, _sampling_bytes(policy, config, device_bytes), update_bytes(policy, one_pass, checkpointed))


def largest_pass(config: Config, shared_prompts: bool, padded: bool) -> Pass:
    """Return the largest pass of a step whose prompts and completions all have their full length.

    Without ``shared_prompts`` each row holds a prompt and its completion, and all its tokens are queries.
    """
    sampling, budget = config.sampling, config.optimizer.tokens_per_micro_batch
    prompt, completion, size = sampling.max_prompt_tokens, sampling.max_new_tokens, sampling.group_size
    if not shared_prompts:
        prompt, completion, padded = 0, prompt + completion, False  # `micro_batches` then counts tokens alone
    largest, longer = Pass(), Pass().with_sequence(prompt, completion, new_prompt=True)
    while not largest.rows or (longer.cost(padded) <= budget and largest.rows < sampling.prompts_per_step * size):
        largest = longer
        longer = largest.with_sequence(prompt, completion, new_prompt=largest.rows % size == 0)
    return largest


def update_bytes(policy: Policy, one_pass: Pass, checkpointed: bool) -> float:
    """Return the bytes that the update needs besides the states, at the moment when it needs most.

    The layers are those of Llama and Qwen: normalisation, attention, and a gated network. Simpler ones need less.
    """
    text = policy.causal_lm.config.get_text_config()
    layers, width = int(text.num_hidden_layers), int(text.hidden_size)
    if not policy.pads_attention:
        one_pass = replace(one_pass, tokens=padded_length(one_pass.tokens))
    layer = layer_bytes(text, one_pass, policy.mixed_precision, policy.pads_attention)
    ends = {id(module.weight) for module in (policy.causal_lm.get_input_embeddings(), _output_layer(policy))}
    matrices = sum(parameter.numel() for parameter in policy.parameters() if id(parameter) not in ends)
    # Until the forward pass ends, autocast keeps a bfloat16 copy of each matrix that is trained.
    cast = 2.0 * matrices * policy.mixed_precision
    weight = _output_layer(policy).weight
    gradient = 4.0 * weight.numel() * weight.requires_grad  # of this pass, beside that of earlier ones
    # Chunks of logits, the hidden states with their gradient, and the weight as autocast rounds it.
    rounded = 2.0 * weight.numel() * policy.mixed_precision
    head = float(LOGITS_BYTES[policy.device.type] + 8.0 * width * one_pass.tokens + gradient + rounded)
    if not checkpointed:
        return layers * layer + cast + head
    kept = 4.0 * width * one_pass.tokens * layers  # the input of each layer, in float32
    # While a layer is computed again and passed backward, two gradients of its gated network are held as well. Later,
    # without what that network saved, two float32 gradients of the attention weights, and these only in float32.
    gated = (4.0 if policy.mixed_precision else 8.0) * gated_width(text) * one_pass.tokens
    weights = (6.0 if policy.mixed_precision else 8.0) * attention_weights(text, one_pass)
    working = layer + max(gated, weights - 2 * gated)
    # A head that is also the embedding waits for that gradient.
    tied = weight is policy.causal_lm.get_input_embeddings().weight
    return float(kept + max(cast, head, working + cast / layers + gradient * tied))


def layer_bytes(text: Any, one_pass: Pass, half: bool, padded: bool) -> float:
    """Return the bytes that a layer saves for its backward pass.

    Under bfloat16 autocast (``half``), a token saves 8 bytes per unit of width for each of two normalisations, whose
    inputs are float32, 10 for the casts that enter five matrices, 2 for each value of the attention's output, and 8 for
    each unit of the gated network. In float32 these are 24, 4 and 16. Attention saves more: with a mask (``padded``),
    a query with another copy of its output, repeated keys and values, and the mask; FlexAttention, a query, a key and a
    value; `attention_weights`, one number each and under autocast another that is rounded.
    """
    width, gated = text.hidden_size, gated_width(text)
    heads = getattr(text, "num_attention_heads", None) or 0
    attended = heads * (getattr(text, "head_dim", None) or width // heads) if heads else width
    token = 26 * width + 2 * attended + 8 * gated if half else 24 * width + 4 * attended + 16 * gated
    element = 2 if half else 4
    if padded:
        states = 2 * attended * one_pass.rows * (one_pass.queries + one_pass.keys)
        mask = one_pass.rows * one_pass.queries * one_pass.keys
    else:
        states, mask = (attended + _cached_elements(text)) * one_pass.tokens, 0
    weights = (6 if half else 4) * attention_weights(text, one_pass)
    return float(one_pass.tokens * token + element * (states + mask) + weights)


def attention_weights(text: Any, one_pass: Pass) -> int:
    """Return how many attention weights a layer saves, one for each head, query and key; none if not ``eager``."""
    heads = getattr(text, "num_attention_heads", None)
    if text._attn_implementation != "eager" or not heads:
        return 0
    return int(heads * one_pass.rows * one_pass.queries * one_pass.keys)


def gated_width(text: Any) -> int:
    """Return the width of the layers' gated network, the largest if they differ; if it is not stated, 4 H."""
    stated = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    return max(stated) if isinstance(stated, list | tuple) else int(stated)


def _output_layer(policy: Policy) -> Any:
    return policy.causal_lm.get_output_embeddings()


def _sampling_bytes(policy: Policy, config: Config, device_bytes: float) -> float:
    """Return the bytes of the cache of keys and values and of copies of weights, or of vLLM with its weights."""
    sampling = config.sampling
    if sampling.engine == "vllm_server":
        return 0.0
    if sampling.engine == "vllm" and policy.device.type == "cuda":
        return sampling.gpu_memory * device_bytes
    text = policy.causal_lm.config.get_text_config()
    configs = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers  # layers may share one
    rows = min(sampling.batch_size, sampling.prompts_per_step * sampling.group_size)
    element = 2 if policy.mixed_precision else 4
    context = sampling.max_prompt_tokens + sampling.max_new_tokens
    # On a GPU, linear layers whose weights are float32 multiply by bfloat16 copies while the policy samples.
    linear = [module.weight for module in policy.causal_lm.modules() if isinstance(module, torch.nn.Linear)]
    copies = sum(2 * w.numel() for w in linear if w.dtype == torch.float32) * policy.mixed_precision
    return float(copies + sum(map(_cached_elements, configs)) * element * rows * context)


def _cached_elements(layer: Any) -> int:
    """Number of cached elements per token in a layer: keys and values, or 0 in a layer without attention."""
    attention_heads = getattr(layer, "num_attention_heads", None)
    if not attention_heads:
        return 0
    heads = getattr(layer, "num_key_value_heads", None) or attention_heads
    width = getattr(layer, "head_dim", None) or layer.hidden_size // attention_heads
    return int(2 * heads * width)
