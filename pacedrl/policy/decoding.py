"""Choosing how completions are decoded, so that a model's log-probabilities agree however it is run.

Each way is tried on a few tokens when a model is loaded, because nothing else tells for every architecture whether
sampling, training and a plain forward pass give the same log-probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from pacedrl.errors import InputError
from pacedrl.policy.loading import one_line
from pacedrl.policy.sampler import SamplingSettings, sample

if TYPE_CHECKING:
    from pacedrl.policy.policy import Policy

Decoding = Literal["columns", "padded", "equal"]
"""Decode with the cache of `pacedrl.policy.cache`, or with the model's own (`pacedrl.policy.generate`): prompts of
different lengths padded, or prompts of one length at a time."""
WAYS: tuple[Decoding, ...] = get_args(Decoding)
SETTINGS = SamplingSettings(group_size=2, max_new_tokens=8)
TOLERANCE = 5e-4
"""Largest difference, in nats per token. Float32 rounding gives about 1e-6 in small models and 1e-4 in deep ones."""


@torch.no_grad()
def choose_decoding(policy: Policy) -> Decoding:
    """Return the first of `WAYS` whose log-probabilities equal those of a plain forward pass, in float32.

    On a GPU, which samples in bfloat16, float32 still tells right from wrong, where rounding would hide small errors:
    `half_weights` gives what autocast gives, bit for bit, and whether a policy ``shares_prompts`` was tried in both.

    Raises InputError naming the architecture when none does, when the log-probabilities of training differ, or when the
    model cannot run on tokens alone.
    """
    name = f"model.name: {type(policy.causal_lm).__name__}"
    usual, policy.mixed_precision = policy.mixed_precision, False
    try:
        prompts = _prompts(policy)
        _require_causal(policy, prompts[0], name)
        differences = []
        for way in WAYS:
            difference = _difference(policy, prompts, way)
            if difference is None:
                return way
            differences.append(difference)
    finally:
        policy.mixed_precision = usual
    raise InputError(
        f"{name} cannot be sampled from: with a key-value cache {differences[0]}, with its own {differences[-1]}; "
        "choose another model"
    )


def _prompts(policy: Policy) -> list[list[int]]:
    """Return two prompts of different lengths without the tokens that are known to be special."""
    size = policy.head.weight_VH.shape[0]
    ordinary = [i for i in range(3, size) if i != policy.pad_id and i not in policy.eos_ids]
    return [ordinary[start : start + length] for start, length in enumerate((9, 2))]


def _require_causal(policy: Policy, ids: list[int], name: str) -> None:
    try:
        whole, part = _forward(policy, ids), _forward(policy, ids[:-2])
    except Exception as error:  # the model's own code may raise anything
        raise InputError(f"{name} cannot be run on tokens alone: {one_line(error)}; choose another model") from None
    if not _close(part, whole[: len(part)]):
        raise InputError(
            f"{name} is not a causal model: its predictions depend on later tokens; choose a decoder, or set "
            "is_decoder in the config.json of an encoder that can be one"
        )


def _difference(policy: Policy, prompts: list[list[int]], way: Decoding) -> str | None:
    """Say how this way of decoding differs from a plain forward pass; None if they agree.

    Raises InputError if training differs from the forward pass.
    """
    try:
        groups = dict(sample(policy, prompts, SETTINGS, seeds=range(len(prompts)), decoding=way))
    except Exception as error:  # a cache that does not hold keys and values can fail in many ways
        return f"it fails ({one_line(error)})"
    drawn = [(prompts[i], completion) for i, group in groups.items() for completion in group]
    expected = [_plain(policy, prompt, completion.token_ids) for prompt, completion in drawn]
    for (_, completion), logprob_T in zip(drawn, expected, strict=True):
        if not _close(torch.tensor(completion.logprobs), logprob_T):
            return "it draws other tokens than a plain forward pass predicts"
    _require_trained(policy, [prompt for prompt, _ in drawn], [c.token_ids for _, c in drawn], expected)
    return None


def _require_trained(
    policy: Policy, prompts: list[list[int]], completions: list[list[int]], expected: list[Tensor]
) -> None:
    """Raise InputError if training computes other log-probabilities than a plain forward pass, or no gradient."""
    name = f"model.name: {type(policy.causal_lm).__name__} cannot be trained here"
    embedded: list[Tensor] = []
    hook = policy.causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        with torch.enable_grad():
            logprobs_BT, _, mask_BT = policy.logprobs(prompts, completions)
            torch.autograd.grad(logprobs_BT.sum(), embedded[-1])  # through all layers, without gradients of weights
    except Exception as error:  # the model's own code may raise anything
        raise InputError(f"{name}: {one_line(error)}; choose another model") from None
    finally:
        hook.remove()
    for row_T, mask_T, logprob_T in zip(logprobs_BT.detach().cpu(), mask_BT.cpu(), expected, strict=True):
        if not _close(row_T[mask_T], logprob_T):
            raise InputError(f"{name}: in a batch it computes other log-probabilities than alone; choose another model")


def _plain(policy: Policy, prompt: list[int], completion: list[int]) -> Tensor:
    """Compute the log-probabilities of a completion's tokens in one forward pass without a cache: [T]."""
    logits_LV = _forward(policy, [*prompt, *completion])[len(prompt) - 1 : -1]
    return torch.log_softmax(logits_LV, dim=-1)[range(len(completion)), completion]


def _forward(policy: Policy, ids: list[int]) -> Tensor:
    ids_1L = torch.tensor([ids], device=policy.device)
    logits_LV: Tensor = policy.causal_lm(input_ids=ids_1L, use_cache=False).logits[0].float().cpu()
    return logits_LV


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=TOLERANCE / 10, atol=TOLERANCE)
