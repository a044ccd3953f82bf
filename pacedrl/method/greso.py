"""GRESO (arXiv 2506.02177): skip prompts whose last groups had equal rewards, with a probability that adapts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pacedrl.method.estimator import Floats, Indices
from pacedrl.method.selection import uninformative

START = 0.5
"""Exploration probability at the start, for easy and for hard prompts."""
STEP = 0.01
"""Change of an exploration probability per step."""
EXPLORATION_RANGE = (0.05, 0.95)
"""Range of the exploration probabilities."""
TARGETS = {"easy": 1 / 12, "hard": 2 / 12}
"""Share of a step's groups that should be all right or all wrong: a quarter, of which two thirds are wrong, because
hard prompts are more likely to become informative."""
LEAST_KEPT = 0.01
"""Lower bound of the probability that a prompt is not skipped."""


class ZeroVarianceSkips:
    """Counts the epochs of N prompts. Prompts whose last groups had equal rewards may skip some.

    A prompt whose last z groups were all right is skipped in an epoch with probability 1 − p_easy^z, and one whose last
    z groups were all wrong with 1 − p_hard^z. In each step, an exploration probability p decreases if the share of such
    groups reaches its target, and increases otherwise. The constants are those of the authors' code, which also leaves
    p_easy and p_hard alone during the first epoch.

    The number of epochs skipped in a row has a geometric distribution, so one uniform draw per visit replaces a draw in
    every epoch. Departure: the current exploration probability then applies to all epochs since the visit. The paper
    does not discuss groups of equal partial rewards; they count as wrong here.

    Attributes:
        epoch_N: the first epoch after a prompt's last visit, from 0.
        run_N: number of groups in a row, up to the last, that were all right; negative if they were all wrong.
        draw_N: the uniform draws in [0, 1).
        exploration: the exploration probabilities p_easy and p_hard.
    """

    def __init__(self, prompts: int) -> None:
        self.epoch_N: Indices = np.zeros(prompts, dtype=np.int64)
        self.run_N: Indices = np.zeros(prompts, dtype=np.int64)
        self.draw_N: Floats = np.zeros(prompts)
        self.exploration = dict.fromkeys(TARGETS, START)

    def skip_probability(self) -> Floats:
        """Return the probability that each prompt is skipped in an epoch, [N]."""
        base_N = np.where(self.run_N > 0, self.exploration["easy"], self.exploration["hard"])
        skip_N: Floats = 1.0 - np.maximum(base_N ** np.abs(self.run_N), LEAST_KEPT)
        return skip_N

    def next_epoch(self) -> Indices:
        """Return the epoch in which each prompt is sampled next, [N]; the prompts with the lowest are due first."""
        # A prompt is skipped at least k times with probability skip^k: if 1 − draw ≤ skip^k.
        with np.errstate(divide="ignore"):  # log 0 = −∞ means that it is never skipped
            skipped_N = np.log1p(-self.draw_N) / np.log(self.skip_probability())
        return self.epoch_N + np.floor(skipped_N).astype(np.int64)

    def observe(
        self, used: Indices, rows_P: Indices, rewards_P: Sequence[Sequence[float]], rng: np.random.Generator
    ) -> None:
        """End a step that sampled the prompts ``used``, each once; those in ``rows_P`` have judged rewards."""
        next_N = self.next_epoch()
        # A prompt that was sampled long before it was due, e.g. to explore, does not wait for that epoch any more.
        self.epoch_N[used] = np.minimum(next_N[used], next_N.min() + 1) + 1
        self.draw_N[used] = rng.random(len(used))
        kinds = [uninformative(rewards) for rewards in rewards_P]
        signs = [{"all_right": 1, "all_wrong": -1, "all_equal": -1}.get(str(kind), 0) for kind in kinds]
        sign_P = np.array(signs, dtype=np.int64)
        goes_on_P = self.run_N[rows_P] * sign_P > 0
        judged_P = np.array([kind != "unjudged" for kind in kinds], dtype=bool)
        run_P = np.where(goes_on_P, self.run_N[rows_P], 0) + sign_P
        self.run_N[rows_P[judged_P]] = run_P[judged_P]
        if judged_P.any() and self.epoch_N.min() > 0:
            for kind, sign in (("easy", 1), ("hard", -1)):
                reached = float((sign_P[judged_P] == sign).mean()) >= TARGETS[kind]
                moved = self.exploration[kind] + (-STEP if reached else STEP)
                self.exploration[kind] = float(np.clip(moved, *EXPLORATION_RANGE))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and numbers."""
        arrays: dict[str, NDArray[Any]] = {"epoch": self.epoch_N, "run": self.run_N, "draw": self.draw_N}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()} | {
            "exploration": dict(self.exploration)
        }

    def load_state_dict(self, state: Mapping[str, Any], rows: Indices) -> None:
        """Restore the state of the prompts that are now in ``rows``; the others are due first, in the lowest epoch."""
        self.epoch_N[:] = int(state["epoch"].min())
        self.run_N[:] = 0
        self.draw_N[:] = 0.0
        for array, name in ((self.epoch_N, "epoch"), (self.run_N, "run"), (self.draw_N, "draw")):
            array[rows] = state[name].numpy()
        self.exploration = dict(state["exploration"])
