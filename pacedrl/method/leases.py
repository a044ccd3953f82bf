"""Leases of the prompts under way, so that a trainer can have several batches sampled at the same time.

In lock step, a trainer selects a batch, samples it, trains on it and observes it before it selects the next one. In an
asynchronous trainer, results come late, out of order, in parts, or never. These are the rules:

- `DifficultyScheduler.take` selects prompts and leases them. A prompt under lease is not selected again, unless too few
  others are left; those taken longest ago then fill up the batch.
- `DifficultyScheduler.observe` ends a policy step. Call it once for each update of the policy, with all results that
  have come since the last call, from any batch. It closes one lease of every prompt in them, even if only some of the
  prompt's completions have come, or none could be judged.
- Each completion may name the step of the policy that sampled it (`Rollouts.policy_step_B`). What the policy of one
  step does on a prompt is one visit, in however many parts its results come. (If one call brings completions of a
  prompt by several policies, the newest stands for all.)
- Results of a policy that is a steps old have the weight γ^a (``age_discount``) in the prompt's counts and in the fit
  of log Z. Replay counts the age of a completion from its policy step. If a newer policy has visited the prompt in the
  meantime, late results are still added to the evidence, but do not count as a visit. A log Z in closed form, BOTS and
  GRESO count each part of a group as a group, which overstates what is known: give them whole groups if you can.
  (Parts of one completion each show no sampling noise, so a log Z in closed form has to assume it.)
- A lease expires after ``lease_steps`` policy steps, since its results may never come. Results that come later are
  still evidence, and so are results of prompts that were never leased.
- Selection draws its random numbers from (seed, step, number of leases), so no two batches share them.
- `DifficultyScheduler.release` ends leases as if the prompts had not been taken. Other batches may then select them.

With one batch at a time, all this is the same as lock step. The state of the scheduler holds the leases.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import Indices


class Leases:
    """The leases of the prompts that were taken to be sampled and whose results have not been observed yet.

    A lease is a prompt (its row) and the policy step at which it was taken. A prompt that was taken again has several.
    The oldest ends when results of the prompt are observed (`close`), the newest when the prompt is given back
    (`release`), and each after ``steps`` policy steps (`expire`). Leases are in the order of taking.

    Args:
        steps: number of policy steps after which a lease expires, at least 1. With 1 a lease ends with the step in
            which it was taken.
    """

    def __init__(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"a lease must last at least 1 step, got {steps}")
        self.steps = steps
        self._open: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._open)

    @property
    def rows(self) -> list[int]:
        """The row of each lease, the oldest first."""
        return [row for row, _ in self._open]

    def free(self, prompts: int, at_least: int) -> NDArray[np.bool_]:
        """Return for each of all ``prompts`` whether it may be taken, [N]: if it is not under lease.

        If these are fewer than ``at_least``, those taken longest ago are added: leases cannot leave a batch short.
        """
        leased = list(dict.fromkeys(reversed(self.rows)))[::-1]  # each prompt at the place of its newest lease
        missing = max(at_least - (prompts - len(leased)), 0)
        free_N = np.ones(prompts, dtype=bool)
        free_N[leased[missing:]] = False
        return free_N

    def take(self, rows: Indices, step: int) -> None:
        """Lease the prompts at policy step ``step``."""
        self._open += [(row, step) for row in rows.tolist()]

    def close(self, rows: Indices) -> None:
        """End the oldest lease of each of these prompts; prompts without a lease are passed over."""
        self._open = _without(self._open, rows)

    def release(self, rows: Indices) -> None:
        """End the newest lease of each of these prompts; prompts without a lease are passed over."""
        self._open = _without(self._open[::-1], rows)[::-1]

    def expire(self, step: int) -> None:
        """End the leases that are ``steps`` or more steps old at policy step ``step``."""
        self._open = [(row, taken) for row, taken in self._open if step - taken < self.steps]

    def state_dict(self) -> list[list[int]]:
        """Return the row and the step of each lease, in the order of taking."""
        return [list(lease) for lease in self._open]

    def load_state_dict(self, state: Sequence[Sequence[int]], rows: Indices) -> None:
        """Restore the state that `state_dict` returned; ``rows[i]`` is the present row of the prompt that had row i."""
        self._open = [(int(rows[row]), step) for row, step in state]


def _without(leases: list[tuple[int, int]], rows: Indices) -> list[tuple[int, int]]:
    """Return the leases without the first one of each row, or the first n of a row that occurs n times."""
    ending = Counter(rows.tolist())
    kept = []
    for lease in leases:
        if ending[lease[0]] > 0:
            ending[lease[0]] -= 1
        else:
            kept.append(lease)
    return kept
