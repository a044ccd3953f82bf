"""Weights on their way from a training process to a vLLM server: both ends, over NCCL or gloo, never over the disk.

vLLM is told to add the receiving end to its workers:
``vllm serve MODEL --worker-extension-cls pacedrl.policy.vllm.worker.WeightReceiver``. A group of the training process
(rank 0) and the server's workers is formed for each transfer and given up after it, so that a server may come and go.
vLLM's own NCCL transfer is not used: it waits for ever on a server that has died.
"""

from __future__ import annotations

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
"""How long one end waits for the other, to join or at any one tensor."""

Weights = Sequence[tuple[str, Tensor]]


def send(store: Any, size: int, device: torch.device, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Give the weights to the ``size - 1`` others that meet at ``store``, the tensors by way of ``device``."""
    with _group(store, 0, size, device) as group:
        for _, tensor in weights:
            group.broadcast(tensor.to(device).contiguous(), 0).wait()


def receive(
    store: Any, rank: int, size: int, device: torch.device, described: Iterable[tuple[str, str, Sequence[int]]]
) -> Iterator[tuple[str, Tensor]]:
    """The (name, tensor) that `send` gives, of the names, dtypes and shapes ``described``. RuntimeError if it stops."""
    with _group(store, rank, size, device) as group:
        for name, dtype, shape in described:
            tensor = torch.empty(list(shape), dtype=getattr(torch, dtype), device=device)
            group.broadcast(tensor, 0).wait()
            yield name, tensor


def describe(weights: Weights) -> list[tuple[str, str, list[int]]]:
    """What `receive` must be told of the weights."""
    return [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in weights]


def open_store(address: str, port: int | None = None) -> Any:
    """Where the two ends meet: a new one at an address of this machine, with a ``port`` to tell, or the other end's."""
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
    # Read when the group is made: a failed transfer shall raise here, not be noticed by a thread that ends the process.
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
        group.abort()  # frees the GPU of a transfer that the other end will never finish
        raise
    group.shutdown()


class WeightReceiver:
    """What vLLM adds to its workers; the training process calls it by ``/collective_rpc``."""

    rank: int
    device: torch.device
    model_runner: Any
    vllm_config: Any

    def pacedrl_describe(self) -> dict[str, Any]:
        """What the training process must know before it relies on this server."""
        return {
            "device": self.device.type,
            "logprobs_mode": self.vllm_config.model_config.logprobs_mode,
            "max_model_len": self.vllm_config.model_config.max_model_len,
            "data_parallel_size": self.vllm_config.parallel_config.data_parallel_size,
        }

    @torch.no_grad()
    def pacedrl_receive(self, order: str) -> None:
        """Load what is sent. ``order``, JSON: ``host`` and ``port`` of the store, ``size``, ``device``, ``weights``."""
        told = json.loads(order)
        store = open_store(told["host"], told["port"])
        device = self.device if told["device"] == "cuda" else torch.device("cpu")
        incoming = _Complete(receive(store, self.rank + 1, told["size"], device, told["weights"]), told["weights"])
        # vLLM's own way of loading again: it undoes and redoes what it made of the weights for its kernels.
        self.reload_weights(weights_iterator=iter(incoming))  # type: ignore[attr-defined]
        if incoming.failure is not None:
            raise RuntimeError(f"the weights did not arrive: {incoming.failure}")
        if self.device.type == "cpu" and self.vllm_config.model_config.hf_text_config.tie_word_embeddings:
            pack_head(self.model_runner.get_model())


class _Complete:
    """As many tensors as were announced, whatever happens: what vLLM has loaded half of, it cannot begin again."""

    def __init__(self, tensors: Iterator[tuple[str, Tensor]], described: Sequence[tuple[str, str, list[int]]]) -> None:
        self.tensors = tensors
        self.described = described
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in self.described:
            tensor = None
            if self.failure is None:
                try:
                    _, tensor = next(self.tensors)
                except Exception as error:
                    self.failure = error
            yield name, torch.zeros(shape, dtype=getattr(torch, dtype)) if tensor is None else tensor
        next(self.tensors, None)  # leaves the group


def pack_head(model: Any) -> None:
    """For the kernels of vLLM 0.32 on a CPU: loading again passes over a head whose weight is the embedding's."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
