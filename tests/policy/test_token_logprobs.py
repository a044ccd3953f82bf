"""Token log-probabilities from hidden states, compared with autograd through the full logits in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pacedrl.policy import logprobs
from pacedrl.policy.logprobs import Head, token_logprobs

K, H, V = 7, 5, 11


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, cap: float | None, temp: float
) -> tuple[Tensor, Tensor]:
    logits = hidden @ weight.T * scale if bias is None else (hidden @ weight.T + bias) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    logprobs_KV = torch.log_softmax(logits / temp, dim=-1)
    return logprobs_KV[torch.arange(len(target)), target], -(logprobs_KV.exp() * logprobs_KV).sum(dim=-1)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(
    ("scale", "softcap", "temperature"), [(1.0, None, 1.0), (1.0, None, 0.6), (0.25, None, 1.0), (2.0, 1.5, 1.7)]
)
def test_values_and_gradients_are_those_of_the_full_logits(
    monkeypatch: pytest.MonkeyPatch,
    chunk_rows: int,
    with_bias: bool,
    scale: float,
    softcap: float | None,
    temperature: float,
) -> None:
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", chunk_rows * V)
    inputs = [drawn(K, H, seed=0), drawn(V, H, seed=1), *([drawn(V, seed=2)] if with_bias else [])]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.double().requires_grad_() for tensor in inputs]
    target = torch.tensor([0, 10, 3, 3, 7, 1, 9])
    upstream = drawn(K, seed=3)

    bias = ours[2] if with_bias else None
    actual, entropy = token_logprobs(ours[0], Head(ours[1], bias, scale, softcap), target, temperature)
    bias = theirs[2] if with_bias else None
    expected, expected_entropy = reference(theirs[0], theirs[1], bias, target, scale, softcap, temperature)
    (actual * upstream).sum().backward()
    (expected * upstream.double()).sum().backward()

    assert actual.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy.detach(), rtol=1e-5, atol=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_entropy_of_equal_logits_is_log_v_and_carries_no_gradient() -> None:
    weight = drawn(V, H, seed=1).requires_grad_()
    logprob, entropy = token_logprobs(torch.zeros(2, H, requires_grad=True), Head(weight), torch.tensor([0, 5]))
    assert logprob.tolist() == pytest.approx([-math.log(V)] * 2)
    assert entropy.tolist() == pytest.approx([math.log(V)] * 2)
    assert logprob.requires_grad
    assert not entropy.requires_grad


def test_forbidden_tokens_leave_entropy_and_gradients_finite() -> None:
    bias = torch.zeros(V)
    bias[4:] = -math.inf
    hidden = torch.zeros(1, H, requires_grad=True)
    weight = drawn(V, H, seed=1).requires_grad_()
    logprob, entropy = token_logprobs(hidden, Head(weight, bias), torch.tensor([2]))
    logprob.sum().backward()
    assert entropy.item() == pytest.approx(math.log(4))
    assert logprob.item() == pytest.approx(-math.log(4))
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[0], (weight[2] - weight[:4].mean(dim=0)).detach())
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_all_of_theirs(frozen: str) -> None:
    names = ("hidden", "weight", "bias")
    target = torch.tensor([1, 2, 3, 4, 5, 6, 7])

    def gradients(without: str | None) -> dict[str, Tensor | None]:
        tensors = [drawn(K, H, seed=0), drawn(V, H, seed=1), drawn(V, seed=2)]
        named = {n: t.requires_grad_(n != without) for n, t in zip(names, tensors, strict=True)}
        token_logprobs(named["hidden"], Head(named["weight"], named["bias"]), target)[0].sum().backward()
        return {name: tensor.grad for name, tensor in named.items()}

    everything, some = gradients(None), gradients(frozen)
    assert some[frozen] is None
    for name in set(names) - {frozen}:
        assert some[name] is not None
        assert torch.equal(some[name], everything[name])  # type: ignore[arg-type]


class _LargestOutput(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_nothing_of_the_size_of_all_logits_is_made_or_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vocabulary, width = 64, 512, 4
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, "cpu", 8 * vocabulary)
    hidden = drawn(rows, width, seed=0).requires_grad_()
    weight = drawn(vocabulary, width, seed=1).requires_grad_()
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _LargestOutput() as largest:
        logprob, _ = token_logprobs(hidden, Head(weight, None, 2.0, 5.0), torch.arange(rows))
        logprob.sum().backward()
    assert hidden.grad is not None
    assert largest.elements == 8 * vocabulary
    assert max(saved) == vocabulary * width
    assert sum(saved) == vocabulary * width + rows * width + rows  # weight, hidden states, targets


def test_bfloat16_hidden_states_give_float32_probabilities_and_gradients_of_their_own_type() -> None:
    hidden = drawn(K, H, seed=0).bfloat16().requires_grad_()
    weight = drawn(V, H, seed=1).requires_grad_()
    target = torch.arange(K)
    logprob, entropy = token_logprobs(hidden, Head(weight), target)
    logprob.sum().backward()
    expected, _ = reference(hidden.double(), weight.double(), None, target, 1.0, None, 1.0)
    assert logprob.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprob.double(), expected, rtol=0.05, atol=0.05)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
