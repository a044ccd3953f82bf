"""Warnings during training: each names the remedy and is given once per run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pacedrl.diagnosis import rules
from pacedrl.diagnosis.rules import SKIPPED_IN_A_ROW, SUSPECT_KERNELS

UNJUDGED_IN_A_ROW = 3


@dataclass
class Alarms:
    """Applies the rules of a diagnosis to the metrics of each step. Checkpoints keep the first three fields."""

    said: set[str] = field(default_factory=set)
    unmixed_steps: int = 0
    skipped_steps: int = 0
    unjudged_steps: int = 0
    """Number of consecutive steps in which nothing was judged. It starts at 0 in a resumed run, whose first step must
    be judged."""
    finite_loss: bool = False
    """Whether the last step had a finite loss and a gradient that was not."""

    @property
    def must_stop(self) -> tuple[str, str] | None:
        """Say why training cannot continue and what to change; None if it can."""
        if self.skipped_steps >= SKIPPED_IN_A_ROW and self.finite_loss:
            return (
                f"the gradient was not finite in {SKIPPED_IN_A_ROW} steps in a row, and the last loss was finite",
                f"{SUSPECT_KERNELS[0].upper()}{SUSPECT_KERNELS[1:]}, and start another run",
            )
        if self.skipped_steps >= SKIPPED_IN_A_ROW:
            return (
                f"the loss was not finite in {SKIPPED_IN_A_ROW} steps in a row",
                "Lower optimizer.learning_rate, or raise objective.beta if the objective has one, and start another "
                "run",
            )
        if self.unjudged_steps >= UNJUDGED_IN_A_ROW:
            return (
                f"the verifier failed on every completion of {UNJUDGED_IN_A_ROW} steps in a row",
                "See the errors in samples.jsonl, fix the verifier, and start the run again: it resumes from there",
            )
        return None

    def check(self, metrics: Mapping[str, float], config: Mapping[str, Any], error: str | None = None) -> list[str]:
        """Return the warnings about the metrics of this step that were not given before.

        ``config`` is the resolved configuration as a tree; ``error`` is the verifier's commonest one in this step.
        """
        self.unmixed_steps = 0 if metrics["reward/mixed_groups"] > 0 else self.unmixed_steps + 1
        self.skipped_steps = self.skipped_steps + 1 if metrics["optim/skipped"] else 0
        self.finite_loss = math.isfinite(metrics["loss/objective"]) and not math.isfinite(metrics["grad_norm"])
        unjudged = 0 < metrics["rollouts/step"] <= metrics["verifier/errors"]
        self.unjudged_steps = self.unjudged_steps + 1 if unjudged else 0
        example = f"; its commonest error: {error}"
        same_weights = metrics["rollouts/age"] == 0
        found = {
            "truncated": rules.truncated(config, metrics["completion/truncated"]),
            "unmixed": rules.no_mixed_groups(config, [True] * self.unmixed_steps, None),
            "errors": rules.verifier_errors(config, metrics["verifier/errors"], metrics["rollouts/step"], example),
            "mismatch": rules.sampler_trainer_gap(config, metrics["mismatch/logprob_mean"] if same_weights else 0.0),
            "capped": rules.gate_capped(
                config, metrics["gate/capped"], 1, metrics["gate/kept"], metrics["gate/batches"]
            ),
            "not finite": rules.not_finite(
                config, int(metrics["optim/skipped_updates"] > 0), 1, 0, ended=False, finite_loss=self.finite_loss
            ),
        }
        new = {name: finding for name, finding in found.items() if finding is not None and name not in self.said}
        self.said.update(new)
        return [f"{finding.text[0].lower()}{str(finding)[1:]}" for finding in new.values()]
