"""The processes of a run: each has a share of every step's work, and all go through the same steps.

Started by ``torchrun`` or ``accelerate launch``; without either there is one process, and nothing is exchanged. What is
told to others are Python objects, over gloo; gradients go by the device's own backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

Item = TypeVar("Item")
Made = TypeVar("Made")
Value = TypeVar("Value")

PATIENCE = timedelta(hours=2)
"""How long one process waits for the others, whose completions or verdicts may take longer. A process that dies is not
waited for: who launched them ends the rest."""
BUCKET = 2**25
"""Gradients exchanged at once: 128 MiB of float32."""


class Ranks:
    """This process's number among ``count``, and exchanges that all of them take part in, in the same order."""

    def __init__(self, index: int = 0, count: int = 1, group: Any = None) -> None:
        self.index = index
        self.count = count
        self._group = group

    @property
    def main(self) -> bool:
        """Whether this is the process that decides, logs and saves."""
        return self.index == 0

    def twin(self) -> Ranks:
        """The same processes on a line of their own, for a second thread."""
        return Ranks(self.index, self.count, _objects() if self.count > 1 else None)

    def broadcast(self, value: Value) -> Value:
        """The value that the main process gives."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in order of their numbers."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether some process says so."""
        return any(self.gather(flag))

    def decide(self, decision: Callable[[], Value]) -> Value:
        """What the main process decides; what it raises is raised by all."""
        if self.count == 1:
            return decision()
        answer: Any = None
        if self.main:
            try:
                answer = (decision(), None)
            except Exception as error:
                answer = (None, error)
        value, failure = self.broadcast(answer)
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def share(
        self,
        items: Sequence[Item],
        make: Callable[[Sequence[Item]], Sequence[Made]],
        costs: Sequence[float] | None = None,
    ) -> list[Made]:
        """``make`` of all items, of which each process makes a part, one after the other, about equal in cost.

        What one process raises is raised by all.
        """
        if self.count == 1:
            return list(make(items))
        own = items[self.part(costs or [1.0] * len(items))]
        return [made for part in self.together(lambda: list(make(own)) if own else []) for made in part]

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """What every process makes of it; what one raises is raised by all."""
        result: Any
        try:
            result = (work(), None)
        except Exception as error:
            if self.count == 1:
                raise
            result = (None, error)
        results = self.gather(result)
        for _, failure in results:
            if failure is not None:
                raise failure
        return [value for value, _ in results]

    def part(self, costs: Sequence[float]) -> slice:
        """This process's of as many parts, about equal in cost, of a sequence of things with these costs."""
        middles = np.cumsum(costs) - np.asarray(costs) / 2
        bounds = np.array([self.index, self.index + 1]) / self.count * sum(costs)
        first, last = np.searchsorted(middles, bounds)
        return slice(int(first), int(last))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes; one that is missing counts as zero."""
        if self.count == 1:
            return
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(gradient.numel() for gradient in bucket) >= BUCKET:
                _sum(bucket)
                bucket = []
        if bucket:
            _sum(bucket)


def _sum(bucket: list[torch.Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in bucket])
    for gradient, part in zip(bucket, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _objects() -> Any:
    """A group of all processes that Python objects are exchanged in."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


@cache
def connect() -> Ranks:
    """The processes that ``torchrun`` or ``accelerate launch`` started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Ranks(dist.get_rank(), dist.get_world_size(), _objects())
