"""Joining parts of an optimiser's state. end_to_end/test_e2e_ranks.py tests it between real processes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import MixedPrecisionPolicy

from pacedrl.distributed.sharding import join_optimizer_states, layer_precision


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 5))
def test_parts_split_along_the_first_dimension_make_the_whole(rows: list[int], count: int) -> None:
    parameters = [torch.randn(n, 3) for n in rows]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    whole = optimizer.state_dict()
    parts = []
    for k in range(count):  # as FSDP2 splits them, where the last ones may be empty
        state = {
            i: {
                name: tensor if tensor.dim() == 0 else (*torch.chunk(tensor, count), *[tensor[:0]] * count)[k]
                for name, tensor in names.items()
            }
            for i, names in whole["state"].items()
        }
        parts.append({"state": state, "param_groups": whole["param_groups"]})
    joined = join_optimizer_states(parts, parameters)
    assert joined["param_groups"] == whole["param_groups"]
    for i, names in whole["state"].items():
        for name, tensor in names.items():
            assert torch.equal(joined["state"][i][name], tensor)
            assert joined["state"][i][name] is not tensor


def test_layers_are_gathered_in_bfloat16_and_summed_in_float32_on_a_gpu_alone() -> None:
    on_gpu = layer_precision("cuda")
    assert (on_gpu.param_dtype, on_gpu.reduce_dtype, on_gpu.output_dtype) == (torch.bfloat16, torch.float32, None)
    assert not on_gpu.cast_forward_inputs  # hidden states stay float32
    assert layer_precision("cpu") == MixedPrecisionPolicy()
