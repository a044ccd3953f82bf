"""One policy sharded over the processes: each holds a part of every weight, its gradient and its optimiser state.

This is torch's FSDP2 (``fully_shard``), also known as ZeRO-3: a layer's weights are all-gathered for its computation
and freed afterwards; its gradient is reduce-scattered, so that each process keeps its part of the sum.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

Made = TypeVar("Made")


class Sharded(torch.nn.Module):
    """A module whose weights are sharded over all processes. Functions that compute with it run through `forward`.

    Every process must make the same number of such calls, in the same order, because each call gathers weights from all
    of them (`pacedrl.policy.passes.model_passes` ensures it).
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        device = next(module.parameters()).device.type
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        for layer in [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]:
            _shard_layer(layer, mesh, layer_precision(device))
        # The embedding and the head are in no layer. They are used first and last, so they stay gathered in between,
        # in float32, so that hidden states between the layers are float32, as without sharding.
        fully_shard(self, mesh=mesh, reshard_after_forward=False)
        for part in self.modules():
            if isinstance(part, FSDPModule):
                # Each process's loss is its share of the batch's loss, so gradients are summed, not averaged.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)

    def forward(self, compute: Callable[[], Made]) -> Made:
        """Return what ``compute`` returns; its tensors may carry gradients."""
        return compute()

    def run(self, compute: Callable[[], Made]) -> Made:
        """Run `forward`, then free the gathered weights unless a backward pass will need them."""
        result: Made = self(compute)
        if not torch.is_grad_enabled():
            self.reshard()  # type: ignore[operator]
        return result


def layer_precision(device: str) -> MixedPrecisionPolicy:
    """Return how a layer's weights are gathered and its gradients summed, by the type of device.

    On a GPU weights are gathered in bfloat16, to which autocast would round them anyway, and gradients are summed in
    float32. On a CPU both are float32. Autocast does not round the weights of normalisation, so these are always
    gathered in float32.
    """
    if device != "cuda":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)


def _shard_layer(layer: torch.nn.Module, mesh: DeviceMesh, precision: MixedPrecisionPolicy) -> None:
    """Shard a layer. If its weights are gathered in ``precision``, those of its normalisations are gathered apart.

    FSDP2 has one precision per sharded module. A normalisation is a module whose own weights are all vectors.
    """
    if precision.param_dtype is not None:
        for part in list(layer.modules()):
            own = list(part.parameters(recurse=False))
            if own and all(weight.dim() == 1 for weight in own):
                fully_shard(part, mesh=mesh)
    fully_shard(layer, mesh=mesh, mp_policy=precision)


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered if it is sharded. All processes must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def join_optimizer_states(parts: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Build the optimiser state for ``parameters`` from the parts that the processes of a run saved, in order of rank.

    That run may have had another number of processes, and a single part comes from a policy that was not sharded. The
    result is sharded as the parameters are now. FSDP2 shards tensors along their first dimension.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, names in parts[0]["state"].items():
        state[i] = {name: _like([part["state"][i][name] for part in parts], parameters[i]) for name in names}
    return {"state": state, "param_groups": parts[0]["param_groups"]}


def _like(parts: Sequence[Tensor], parameter: Tensor) -> Tensor:
    if parts[0].dim() == 0:  # the number of steps is the same on every process
        return parts[0].clone()
    tensor = torch.cat(list(parts))
    if not isinstance(parameter, DTensor):
        return tensor
    tensor = tensor.to(parameter.device)
    # Every process has read the same files, so nothing has to be broadcast.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
