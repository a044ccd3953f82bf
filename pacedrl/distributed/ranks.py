"""The processes of one run. Each does a share of every step's work, and all go through the same steps.

``torchrun`` or ``accelerate launch`` starts them; without either there is one process and nothing is exchanged. Python
objects are exchanged over gloo, gradients over the device's own backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

Item = TypeVar("Item")
Made = TypeVar("Made")
Value = TypeVar("Value")

Outcome = tuple[Any, Exception | None]
"""The value that a function returned, or the exception that it raised."""

TIMEOUT = timedelta(hours=2)
"""How long a collective waits for the other processes: sampling or verification may take longer on them. When a process
dies, the launcher ends the others without this wait."""
BUCKET = 2**25
"""Gradient elements that one all-reduce sums: 128 MiB of float32."""


class Ranks:
    """This process's rank, ``index``, among ``count`` processes, and the collectives between them.

    All processes must call the same collectives in the same order.
    """

    def __init__(self, index: int = 0, count: int = 1, group: Any = None) -> None:
        self.index = index
        self.count = count
        self._group = group

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which makes the decisions, logs and saves."""
        return self.index == 0

    def with_new_group(self) -> Ranks:
        """Return the same processes with a process group of their own, so that a second thread can use collectives."""
        return Ranks(self.index, self.count, _new_group() if self.count > 1 else None)

    def broadcast(self, value: Value) -> Value:
        """Return rank 0's value on every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in order of rank, on every process (an all-gather)."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def run_on_main(self, decision: Callable[[], Value]) -> Value:
        """Call ``decision`` on rank 0 and broadcast its result. An exception in it is raised on every process."""
        if self.count == 1:
            return decision()
        return cast(Value, _result(self.broadcast(_outcome(decision) if self.main else (None, None))))

    def run_on_all(self, work: Callable[[], Value]) -> list[Value]:
        """Call ``work`` on every process and all-gather the results. An exception on one is raised on every process."""
        if self.count == 1:
            return [work()]
        return [_result(outcome) for outcome in self.gather(_outcome(work))]

    def map(self, items: Sequence[Item], make: Callable[[Sequence[Item]], Sequence[Made]]) -> list[Made]:
        """Split the items equally among the processes, call ``make`` on each part and all-gather the results, in order.

        An exception on one process is raised on every process.
        """
        own = items[self.own_slice([1.0] * len(items))]
        return [made for part in self.run_on_all(lambda: list(make(own)) if own else []) for made in part]

    def own_slice(self, costs: Sequence[float]) -> slice:
        """Return this process's slice of a sequence whose items have these costs.

        The slices of all processes cover the sequence in order of rank and cost about the same.
        """
        middles = np.cumsum(costs) - np.asarray(costs) / 2
        bounds = np.array([self.index, self.index + 1]) / self.count * sum(costs)
        first, last = np.searchsorted(middles, bounds)
        return slice(int(first), int(last))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes (an all-reduce). A missing gradient counts as zero."""
        if self.count == 1:
            return
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET:
                _all_reduce(bucket)
                bucket = []
        if bucket:
            _all_reduce(bucket)


def _outcome(work: Callable[[], Any]) -> Outcome:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _result(outcome: Outcome) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value


def _all_reduce(bucket: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _new_group() -> Any:
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


@cache
def connect() -> Ranks:
    """Join the processes that ``torchrun`` or ``accelerate launch`` started, or return this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # first, because NCCL communicates from this GPU
        dist.init_process_group(backend, timeout=TIMEOUT)
    return Ranks(dist.get_rank(), dist.get_world_size(), _new_group())
