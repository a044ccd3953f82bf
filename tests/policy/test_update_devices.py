"""The update's passes on a GPU that does not exist: devices and types of tensors, and torch's order of backends."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, fake_cuda, on_fake_cuda
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from pacedrl.policy import flex
from pacedrl.policy import policy as policy_module
from pacedrl.policy.attention import exclude_cudnn, shared_prefix
from pacedrl.policy.flex import Pack, flex_row
from pacedrl.policy.logprobs import _TokenLogprobs
from pacedrl.policy.policy import Policy

Lists = list[list[int]]


@pytest.fixture
def lists_instead_of_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tensors of numpy's arrays by way of lists: torch cannot make a fake tensor of an array."""

    def tensor(values: Any, **options: Any) -> Tensor:
        return torch.tensor(np.array(values).tolist(), **options)

    monkeypatch.setattr(torch, "as_tensor", tensor)


def frozen_on_gpu(policy: Policy) -> Policy:
    """Without gradients, which autograd refuses for a GPU that is not there. Call it within `fake_cuda`."""
    fake = on_fake_cuda(policy)
    fake.model.requires_grad_(False)
    return fake


def unmasked(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, **options: Any) -> Tensor:
    """Stand in for FlexAttention, which has no fake tensors where there is no GPU; check the mask's tensors, too."""
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert getattr(block_mask, name).device == CUDA
    place = torch.zeros(1, dtype=torch.int32, device=CUDA)
    assert block_mask.mask_mod(place, place, place, place).device == CUDA
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16
    return scaled_dot_product_attention(query, key, value, **options)


@pytest.mark.usefixtures("lists_instead_of_arrays")
@pytest.mark.parametrize("pack", [shared_prefix, flex_row, None])
def test_log_probabilities_are_computed_on_the_device_alone(
    tiny: Policy, prompts: Lists, completions: Lists, monkeypatch: pytest.MonkeyPatch, pack: Pack | None
) -> None:
    monkeypatch.setattr(flex, "compiled_attention", lambda: unmasked)
    with fake_cuda(), torch.no_grad():
        policy = frozen_on_gpu(tiny)
        policy.takes_patterns = pack is not None
        if pack is not None:
            policy.packing = pack
        results = policy.logprobs(prompts, completions)
    assert [result.device for result in results] == [CUDA] * 3
    assert [result.dtype for result in results] == [torch.float32, torch.float32, torch.bool]


@pytest.mark.usefixtures("lists_instead_of_arrays")
def test_a_mask_left_on_the_host_would_be_found(
    tiny: Policy, prompts: Lists, completions: Lists, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left_behind(*arguments: Any) -> Any:
        row = shared_prefix(*arguments)
        mask = row.parts[1].mask_RTS
        assert mask is not None
        object.__setattr__(row.parts[1], "mask_RTS", torch.ones(mask.shape, dtype=torch.bool))
        return row

    with fake_cuda(), torch.no_grad():
        policy = frozen_on_gpu(tiny)
        policy.packing = left_behind
        with pytest.raises(RuntimeError, match="device"):
            policy.logprobs(prompts, completions)


def test_the_backward_pass_of_the_head_stays_on_the_device_and_sums_in_float32() -> None:
    """Called by hand, because autograd does not run for a GPU that is not there."""
    saved: dict[str, Any] = {}
    context = SimpleNamespace(
        needs_input_grad=(True,) * 8,
        save_for_backward=lambda *tensors: saved.update(tensors=tensors),
        mark_non_differentiable=lambda *_: None,
    )
    with fake_cuda(), torch.no_grad():
        hidden_KH, weight_VH, bias_V = (torch.empty(*shape, device=CUDA) for shape in ((7, 8), (50, 8), (50,)))
        target_K = torch.zeros(7, dtype=torch.long, device=CUDA)
        outputs = _TokenLogprobs.forward(context, hidden_KH, weight_VH, bias_V, target_K, 2.0, 5.0, torch.bfloat16, 0.5)
        context.saved_tensors = saved["tensors"]
        gradients = _TokenLogprobs.backward(context, torch.ones_like(outputs[0]), torch.ones_like(outputs[0]))
    assert saved["tensors"][0].dtype == torch.bfloat16  # hidden states are kept as they were multiplied
    for tensor, like in zip(
        [*outputs, *gradients[:3]], [target_K, target_K, hidden_KH, weight_VH, bias_V], strict=True
    ):
        assert tensor is not None
        assert (tensor.device, tensor.dtype, tensor.shape) == (CUDA, torch.float32, like.shape)


@pytest.fixture
def cuda_backends() -> Iterator[Any]:
    """torch's settings of the backends of attention, with cuDNN enabled; restored afterwards."""
    cuda: Any = torch.backends.cuda
    before = cuda.cudnn_sdp_enabled()
    cuda.enable_cudnn_sdp(True)
    yield cuda
    cuda.enable_cudnn_sdp(before)


def test_cudnn_is_excluded_and_nothing_else(cuda_backends: Any) -> None:
    order = torch._C._get_sdp_priority_order()
    exclude_cudnn()
    assert not cuda_backends.cudnn_sdp_enabled()
    assert cuda_backends.flash_sdp_enabled()
    assert cuda_backends.mem_efficient_sdp_enabled()
    assert cuda_backends.math_sdp_enabled()
    assert torch._C._get_sdp_priority_order() == order


def test_a_policy_on_a_gpu_excludes_cudnn_before_it_computes(tiny: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    decoder = SimpleNamespace(config=None)
    model = SimpleNamespace(
        get_decoder=lambda: None,
        model=decoder,
        base_model=decoder,
        to=lambda device: (_ for _ in ()).throw(RuntimeError("no GPU is needed from here on")),
    )
    monkeypatch.setattr(policy_module, "exclude_cudnn", lambda: called.append("excluded"))
    for device, expected in (("cpu", []), ("cuda:0", ["excluded"])):
        with pytest.raises(RuntimeError, match="from here on"):
            Policy(model, tiny.tokenizer, torch.device(device))
        assert called == expected
