"""β·log Z of every prompt, kept up to date as log Z is fitted: exactly, or a share of the prompts at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pacedrl.method.estimator import Floats
from pacedrl.method.partition import PartitionLearner


class PartitionScores:
    """β·log Z_φ of N prompts.

    With ``rescore_share`` 1, the paper's way, all are computed with the current φ when they are asked for. Below 1,
    for a million prompts, each fit is followed by computing the next ⌈share·N⌉ in turn and the prompts that were just
    seen; the others keep what they had, at most 1/share fits ago.

    Args:
        learner: of the partition function.
        embeddings_NH: [N, H], float, perhaps memory-mapped.
        rescore_share: in (0, 1].
    """

    def __init__(self, learner: PartitionLearner, embeddings_NH: Tensor, rescore_share: float = 1.0) -> None:
        if not 0.0 < rescore_share <= 1.0:
            raise ValueError(f"rescore_share must lie in (0, 1], got {rescore_share}")
        self.learner = learner
        self.embeddings_NH = embeddings_NH
        self.rescore_share = rescore_share
        self.next = 0
        self._accuracy_N: Floats | None = None

    def all(self) -> Floats:
        """Of every prompt, [N]; do not write to it."""
        if self._accuracy_N is None:
            self._accuracy_N = self._compute(slice(None))
        return self._accuracy_N

    def of(self, rows: NDArray[np.int64]) -> Floats:
        """Of some prompts, with the current φ whatever the share."""
        return self.all()[rows] if self.rescore_share == 1.0 else self._compute(torch.from_numpy(rows))

    def fitted(self, rows: NDArray[np.int64]) -> None:
        """φ has changed, by a fit on these prompts."""
        if self.rescore_share == 1.0:
            self._accuracy_N = None
            return
        accuracy_N = self.all() if self._accuracy_N is None else self._accuracy_N
        count = len(accuracy_N)
        end = min(self.next + math.ceil(self.rescore_share * count), count)
        accuracy_N[self.next : end] = self._compute(slice(self.next, end))
        accuracy_N[rows] = self._compute(torch.from_numpy(rows))
        self.next = end % count

    def fits_ago(self) -> NDArray[np.int64]:
        """How many fits ago each prompt's turn to be computed anew was, [N]; 0 where all always are.

        That of a prompt which has not had its turn yet is what it would be had there been rounds before.
        """
        count = len(self.embeddings_NH)
        if self.rescore_share == 1.0:
            return np.zeros(count, dtype=np.int64)
        turn = math.ceil(self.rescore_share * count)
        turns = math.ceil(count / turn)
        return (self.next // turn - 1 - np.arange(count) // turn) % turns

    def state_dict(self) -> dict[str, Any]:
        """What a share below 1 leaves out of date; nothing where all is computed anew."""
        if self.rescore_share == 1.0 or self._accuracy_N is None:
            return {}
        return {"accuracy": torch.from_numpy(self._accuracy_N.copy()), "next": self.next}

    def load_state_dict(self, state: dict[str, Any], rows: NDArray[np.int64]) -> None:
        """Restore what `state_dict` gave, for the prompts that now stand in ``rows``; others are computed anew."""
        self._accuracy_N = None
        if state and self.rescore_share < 1.0:
            self.next = state["next"] if len(rows) == len(self.embeddings_NH) else 0
            self.all()[rows] = state["accuracy"].numpy()

    def _compute(self, rows: slice | Tensor) -> Floats:
        accuracy: Floats = self.learner.accuracy(self.embeddings_NH[rows]).double().cpu().numpy()
        return accuracy
