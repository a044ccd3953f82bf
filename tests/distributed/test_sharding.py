"""The precision of sharded weights, and joining parts of an optimiser's state.

end_to_end/test_e2e_ranks.py tests sharding between real processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import MixedPrecisionPolicy

from pacedrl.config import ModelConfig
from pacedrl.distributed import sharding
from pacedrl.distributed.sharding import join_optimizer_states, layer_precision, whole
from pacedrl.policy.activations import gradient_checkpointing
from pacedrl.policy.policy import Policy


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


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_weights_gathered_as_on_a_gpu_give_the_log_probabilities_of_an_unsharded_policy(
    monkeypatch: pytest.MonkeyPatch, checkpointed: bool
) -> None:
    """Bit for bit, under autocast: normalisation, which autocast does not round, has float32 weights."""
    monkeypatch.setattr(sharding, "layer_precision", lambda device: layer_precision("cuda"))
    policies = [Policy.load(ModelConfig(), torch.device("cpu")) for _ in range(2)]
    policies[1].shard()
    prompts = [policies[0].encode(text) for text in ("sort:312=", "add:12+30=")]
    outputs, gradients = [], []
    for policy in policies:
        policy.mixed_precision = True
        with gradient_checkpointing(policy.causal_lm, checkpointed):
            logprobs_BT, _, _ = policy.logprobs(prompts, [[5, 6, 7, 2], [8, 2]])
            logprobs_BT.sum().backward()
        outputs.append(logprobs_BT.detach())
        gradients.append(torch.cat([whole(p.grad).flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(*outputs)
    assert gradients[0].dtype == gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0.02, atol=0.01 * float(gradients[0].abs().max()))
