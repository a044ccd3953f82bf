"""Whether a model gives the same log-probabilities however it is run: sampled from, trained, or read in one piece.

Tried on a few tokens when a model is loaded, for nothing else tells it of all architectures that there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from pacedrl.errors import InputError
from pacedrl.policy.sampler import SamplingSettings, sample_by

if TYPE_CHECKING:
    from pacedrl.policy.policy import Policy

Decoding = Literal["columns", "padded", "equal"]
"""How completions are decoded: with the cache of `pacedrl.policy.cache`, or with the model's own
(`pacedrl.policy.own_cache`), prompts of different lengths padded or each length by itself."""
WAYS: tuple[Decoding, ...] = ("columns", "padded", "equal")
PROMPT_LENGTHS = (9, 2)
SETTINGS = SamplingSettings(group_size=2, max_new_tokens=8)
TOLERANCE = 5e-4
"""Nats a token. Float32 rounds to some 1e-6 in small models, 1e-4 in deep ones."""


@torch.no_grad()
def choose_decoding(policy: Policy) -> Decoding:
    """The first of `WAYS` whose log-probabilities are those of a plain forward pass, in float32.

    Raises InputError that names the architecture when none is, when those of training differ, or when the model cannot
    be run on tokens alone.
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
    """Two prompts of different lengths. They avoid the tokens that are known to be special."""
    size = policy.head.weight_VH.shape[0]
    ordinary = [i for i in range(3, size) if i != policy.pad_id and i not in policy.eos_ids]
    return [ordinary[start : start + length] for start, length in enumerate(PROMPT_LENGTHS)]


def _require_causal(policy: Policy, ids: list[int], name: str) -> None:
    try:
        whole, part = _forward(policy, ids), _forward(policy, ids[:-2])
    except Exception as error:  # of the model's own code, which may raise anything
        raise InputError(f"{name} cannot be run on tokens alone: {_one_line(error)}; choose another model") from None
    if not _close(part, whole[: len(part)]):
        raise InputError(
            f"{name} is no causal model: what it predicts depends on later tokens; choose a decoder, or for an encoder "
            "that can be one set is_decoder in its config.json"
        )


def _difference(policy: Policy, prompts: list[list[int]], way: Decoding) -> str | None:
    """How this way of decoding differs from a plain forward pass; None if they agree.

    Raises InputError if training differs from it.
    """
    try:
        groups = dict(sample_by(way, policy, prompts, SETTINGS, seeds=range(len(prompts))))
    except Exception as error:  # as above; a cache that is not keys and values shows in many ways
        return f"it fails ({_one_line(error)})"
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
    """Raise InputError where the log-probabilities that training computes are not those of a plain forward pass.

    Or where they have no gradient.
    """
    name = f"model.name: {type(policy.causal_lm).__name__} cannot be trained here"
    embedded: list[Tensor] = []
    hook = policy.causal_lm.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: embedded.append(output.requires_grad_())
    )
    try:
        with torch.enable_grad():
            logprobs_BT, _, mask_BT = policy.logprobs(prompts, completions)
            torch.autograd.grad(logprobs_BT.sum(), embedded[-1])  # all the way down, and of no weight
    except Exception as error:  # of the model's own code, which may raise anything
        raise InputError(f"{name}: {_one_line(error)}; choose another model") from None
    finally:
        hook.remove()
    for row_T, mask_T, logprob_T in zip(logprobs_BT.detach().cpu(), mask_BT.cpu(), expected, strict=True):
        if not _close(row_T[mask_T], logprob_T):
            raise InputError(f"{name}: in a batch it computes other log-probabilities than alone; choose another model")


def _plain(policy: Policy, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probabilities of a completion's tokens in one forward pass, without a cache: [T]."""
    logits_LV = _forward(policy, [*prompt, *completion])[len(prompt) - 1 : -1]
    return torch.log_softmax(logits_LV, dim=-1)[range(len(completion)), completion]


def _forward(policy: Policy, ids: list[int]) -> Tensor:
    ids_1L = torch.tensor([ids], device=policy.device)
    logits_LV: Tensor = policy.causal_lm(input_ids=ids_1L, use_cache=False).logits[0].float().cpu()
    return logits_LV


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=TOLERANCE / 10, atol=TOLERANCE)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"
