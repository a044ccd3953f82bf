"""Where the log-probabilities of sampler and trainer differ in bfloat16, forced on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pacedrl.policy import attention
from pacedrl.policy.policy import Policy
from pacedrl.policy.sampler import SamplingSettings, sample


def in_float32(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """Attend with the bfloat16 numbers that a kernel is given, without rounding the softmax's weights."""
    with torch.autocast("cpu", enabled=False):
        rounded = [states.bfloat16().float() for states in (query, key, value)]
        return scaled_dot_product_attention(*rounded, **options).bfloat16()


def gap(policy: Policy, prompts: list[list[int]]) -> float:
    """Return the mean gap, in nats per token."""
    groups = dict(sample(policy, prompts, SamplingSettings(8, 12), range(len(prompts))))
    drawn = [(prompts[i], completion) for i, group in groups.items() for completion in group]
    with torch.no_grad():
        logprobs_BT, _, mask_BT = policy.logprobs([p for p, _ in drawn], [c.token_ids for _, c in drawn])
    sampled_K = torch.tensor([logprob for _, completion in drawn for logprob in completion.logprobs])
    return float((logprobs_BT[mask_BT] - sampled_K).abs().mean())


def test_the_gap_comes_from_the_rounding_of_attention_alone(
    policy: Policy, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.mixed_precision, policy.shares_prompts = True, False
    usual = gap(policy, prompts)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", in_float32)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", in_float32)
    assert 10 * gap(policy, prompts) < usual < 1e-2
