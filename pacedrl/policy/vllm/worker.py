"""Sending weights from a training process to a vLLM server's workers, over NCCL or gloo: both ends of the transfer.

vLLM adds the receiving end to its workers with
``vllm serve MODEL --worker-extension-cls pacedrl.policy.vllm.worker.WeightReceiver``. Each transfer has its own process
group of the training process (rank 0) and the server's workers, so that servers may come and go. vLLM's own NCCL
transfer is not used, because it waits forever for a server that has died.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(seconds=120)
"""How long one end waits for the other to join, and for each tensor."""

Weights = Sequence[tuple[str, Tensor]]


def send(store: Any, size: int, device: torch.device, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Broadcast the weights from ``device`` to the other ``size - 1`` processes that join at ``store``."""
    with _group(store, 0, size, device) as group:
        for _, tensor in weights:
            group.broadcast(tensor.to(device).contiguous(), 0).wait()


def receive(
    store: Any, rank: int, size: int, device: torch.device, described: Iterable[tuple[str, str, Sequence[int]]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the (name, tensor) pairs that `send` broadcasts, with the names, dtypes and shapes ``described``.

    Raises RuntimeError if the sender stops.
    """
    with _group(store, rank, size, device) as group:
        for name, dtype, shape in described:
            tensor = torch.empty(list(shape), dtype=getattr(torch, dtype), device=device)
            group.broadcast(tensor, 0).wait()
            yield name, tensor


def describe(weights: Weights) -> list[tuple[str, str, list[int]]]:
    """Return the weights' names, dtypes and shapes for `receive`."""
    return [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in weights]


def open_store(address: str, port: int | None = None) -> Any:
    """Open the store at which both ends join: a new one at a free port of this machine, or the one at ``port``."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port or 0, is_master=port is None, wait_for_workers=False, timeout=TIMEOUT
    )


@contextmanager
def _group(store: Any, rank: int, size: int, device: torch.device) -> Iterator[Any]:
    if device.type != "cuda":
        yield dist.ProcessGroupGloo(store, rank, size, timeout=TIMEOUT)
        return
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = TIMEOUT
    # Read when the group is made. It makes a failed transfer raise here; else a watchdog thread ends the process.
    before = os.environ.get("TORCH_NCCL_BLOCKING_WAIT")
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    try:
        group = dist.ProcessGroupNCCL(store, rank, size, options)
    finally:
        if before is None:
            del os.environ["TORCH_NCCL_BLOCKING_WAIT"]
        else:
            os.environ["TORCH_NCCL_BLOCKING_WAIT"] = before
    try:
        with torch.cuda.device(device):
            yield group
    except BaseException:
        group.abort()  # frees the GPU from a transfer that the other end will never finish
        raise
    group.shutdown()


class WeightReceiver:
    """Methods that vLLM adds to its workers. The training process calls them through ``/collective_rpc``."""

    rank: int
    device: torch.device
    model_runner: Any
    vllm_config: Any

    def pacedrl_describe(self) -> dict[str, Any]:
        """Return the settings that the training process checks before it uses this server."""
        return {
            "device": self.device.type,
            "logprobs_mode": self.vllm_config.model_config.logprobs_mode,
            "max_model_len": self.vllm_config.model_config.max_model_len,
            "data_parallel_size": self.vllm_config.parallel_config.data_parallel_size,
        }

    @torch.no_grad()
    def pacedrl_receive(self, order: str) -> None:
        """Receive and load weights.

        ``order`` is a JSON object: the store's ``host`` and ``port``, the group's ``size``, the ``device`` of the
        transfer, and the description of the ``weights``.
        """
        transfer = json.loads(order)
        store = open_store(transfer["host"], transfer["port"])
        device = self.device if transfer["device"] == "cuda" else torch.device("cpu")
        failures: list[Exception] = []
        tensors = receive(store, self.rank + 1, transfer["size"], device, transfer["weights"])
        # vLLM's own way of reloading, which redoes its preparation of the weights for its kernels.
        self.reload_weights(weights_iterator=_all_announced(tensors, transfer["weights"], failures))  # type: ignore[attr-defined]
        if failures:
            raise RuntimeError(f"the weights did not arrive: {failures[0]}")
        if self.device.type == "cpu" and self.vllm_config.model_config.hf_text_config.tie_word_embeddings:
            pack_head(self.model_runner.get_model())


def _all_announced(
    tensors: Iterator[tuple[str, Tensor]], described: Sequence[tuple[str, str, list[int]]], failures: list[Exception]
) -> Iterator[tuple[str, Tensor]]:
    """Yield all announced tensors, zeros after a failure, because vLLM cannot restart a load that stopped halfway."""
    for name, dtype, shape in described:
        tensor = None
        if not failures:
            try:
                _, tensor = next(tensors)
            except Exception as error:
                failures.append(error)
        yield name, torch.zeros(shape, dtype=getattr(torch, dtype)) if tensor is None else tensor
    next(tensors, None)  # lets the receiver leave the group


def pack_head(model: Any) -> None:
    """Prepare the head for vLLM 0.32's CPU kernels; its reload skips a head whose weight is tied to the embedding."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
