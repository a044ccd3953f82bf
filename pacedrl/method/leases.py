"""Leases: which prompts are under way, so that several batches can be sampled at the same time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import Indices


class Leases:
    """The prompts under way: those that were taken to be sampled and whose results have not been observed yet.

    A lease is a prompt's row and the policy step at which the prompt was taken. A prompt has at most one lease; taking
    it again replaces the lease. A lease ends when the prompt's results are observed or given up (`close`), or when they
    have not come within ``steps`` policy steps (`expire`). Leases are kept in the order in which they were taken.

    Args:
        steps: number of policy steps after which a lease expires, at least 1. With 1 a lease ends with the step in
            which it was taken.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a lease must last at least 1 step, got {steps}")
        self.steps = steps
        self._step_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._step_of)

    @property
    def rows(self) -> Indices:
        """The rows of the prompts under lease, the longest leased first."""
        return np.fromiter(self._step_of, dtype=np.int64, count=len(self))

    def free(self, prompts: int, at_least: int) -> NDArray[np.bool_]:
        """Return for each of all ``prompts`` whether it may be taken, [N]: if it is not under lease.

        If these are fewer than ``at_least``, the longest leased are added, so that leases cannot leave a batch short.
        """
        leased = self.rows
        missing = max(at_least - (prompts - len(leased)), 0)
        free_N = np.ones(prompts, dtype=bool)
        free_N[leased[missing:]] = False
        return free_N

    def take(self, rows: Indices, step: int) -> None:
        """Lease the prompts at policy step ``step``."""
        self.close(rows)
        self._step_of |= dict.fromkeys(rows.tolist(), step)

    def close(self, rows: Indices) -> None:
        """End the leases of these prompts; prompts without a lease are passed over."""
        for row in rows.tolist():
            self._step_of.pop(row, None)

    def expire(self, step: int) -> None:
        """End the leases that are ``steps`` or more steps old at policy step ``step``."""
        self._step_of = {row: taken for row, taken in self._step_of.items() if step - taken < self.steps}

    def state_dict(self) -> list[list[int]]:
        """Return the row and the step of each lease, in the order of taking."""
        return [[row, step] for row, step in self._step_of.items()]

    def load_state_dict(self, state: Sequence[Sequence[int]], rows: Indices) -> None:
        """Restore the state that `state_dict` returned; ``rows[i]`` is the present row of the prompt that had row i."""
        self._step_of = {int(rows[row]): step for row, step in state}
