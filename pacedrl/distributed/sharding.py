"""One policy split among the processes: each holds a part of every weight, of its gradient and of its optimiser state.

This is torch's FSDP2 (``fully_shard``), alias ZeRO-3: a layer's weights are gathered when it is computed and given up
again after; its gradient is summed over the processes and each keeps its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

Made = TypeVar("Made")


class Sharded(torch.nn.Module):
    """A module whose weights are split among all processes; functions that compute with it run through `forward`.

    Every process must come to as many of those, in the same order: each needs what the others hold
    (`pacedrl.policy.passes.model_passes` sees to it).
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        for layer in [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]:
            fully_shard(layer, mesh=mesh)
        # What is in no layer, embedding and head, is used first and last: kept from the one to the other.
        fully_shard(self, mesh=mesh, reshard_after_forward=False)
        for part in self.modules():
            if isinstance(part, FSDPModule):
                # Losses are shares of the whole batch's: their gradients add up.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def forward(self, compute: Callable[[], Made]) -> Made:
        """What ``compute`` returns; tensors in it may carry gradient."""
        return compute()

    def run(self, compute: Callable[[], Made]) -> Made:
        """`forward`, after which no weight is left gathered that no backward pass will need."""
        result: Made = self(compute)
        if not torch.is_grad_enabled():
            self.reshard()  # type: ignore[operator]
        return result


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; asked by all processes at the same time."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join_optimizer_states(parts: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state of an optimiser of ``parameters``, each whole or split as it may be now, from what processes saved.

    ``parts`` are in the order of the processes, whose number then may have been another; one part is of a policy that
    was not split. FSDP2 splits tensors along their first dimension.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, names in parts[0]["state"].items():
        state[i] = {name: _like([part["state"][i][name] for part in parts], parameters[i]) for name in names}
    return {"state": state, "param_groups": parts[0]["param_groups"]}


def _like(parts: Sequence[Tensor], parameter: Tensor) -> Tensor:
    if parts[0].dim() == 0:  # the number of steps
        return parts[0].clone()
    tensor = torch.cat(list(parts))
    if not isinstance(parameter, DTensor):
        return tensor
    tensor = tensor.to(parameter.device)
    # Every process has read the same: none needs to be told by another.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
