"""Warnings that name the remedy, each given once a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TRUNCATED_SHARE = 0.5
UNMIXED_STEPS = 5
VERIFIER_ERROR_SHARE = 0.05
MISMATCH_NATS = 0.05
"""Mean |log-prob gap| a token between sampler and trainer. In float32 it is about 1e-6, in bfloat16 about 0.01."""
SKIPPED_IN_A_ROW = UNJUDGED_IN_A_ROW = 3


@dataclass
class Alarms:
    """Looks at the metrics of each step; remembers what it has said and the runs of bad steps."""

    said: set[str] = field(default_factory=set)
    unmixed_steps: int = 0
    skipped_steps: int = 0
    unjudged_steps: int = 0
    """Not kept in checkpoints: the first step of a resumed run must be judged in any case."""

    @property
    def must_stop(self) -> tuple[str, str] | None:
        """Why training cannot go on and what to change; None while it can."""
        if self.skipped_steps >= SKIPPED_IN_A_ROW:
            return (
                f"the loss was not finite in {SKIPPED_IN_A_ROW} steps in a row",
                "Lower optimizer.learning_rate, or raise objective.beta where the objective has one, and start another "
                "run",
            )
        if self.unjudged_steps >= UNJUDGED_IN_A_ROW:
            return (
                f"the verifier failed on every completion of {UNJUDGED_IN_A_ROW} steps in a row",
                "See the errors in samples.jsonl, mend the verifier, and start the run again: it goes on from there",
            )
        return None

    def check(self, metrics: Mapping[str, float], max_new_tokens: int, error: str | None = None) -> list[str]:
        """The warnings that this step's metrics give rise to, without those given before.

        ``error`` is the verifier's commonest one in this step.
        """
        self.unmixed_steps = 0 if metrics["reward/mixed_groups"] > 0 else self.unmixed_steps + 1
        self.skipped_steps = self.skipped_steps + 1 if metrics["optim/skipped"] else 0
        unjudged = 0 < metrics["rollouts/step"] <= metrics["verifier/errors"]
        self.unjudged_steps = self.unjudged_steps + 1 if unjudged else 0
        raised = {
            "truncated": metrics["completion/truncated"] > TRUNCATED_SHARE,
            "unmixed": self.unmixed_steps >= UNMIXED_STEPS,
            "errors": metrics["verifier/errors"] > VERIFIER_ERROR_SHARE * metrics["rollouts/step"],
            "mismatch": metrics["mismatch/logprob_mean"] > MISMATCH_NATS and metrics["rollouts/age"] == 0,
            "capped": metrics["gate/capped"] > 0,
            "not finite": metrics["optim/skipped_updates"] > 0,
        }
        new = [name for name, is_raised in raised.items() if is_raised and name not in self.said]
        self.said.update(new)
        return [self._text(name, metrics, max_new_tokens, error) for name in new]

    def _text(self, name: str, metrics: Mapping[str, float], max_new_tokens: int, error: str | None) -> str:
        match name:
            case "truncated":
                return (
                    f"{metrics['completion/truncated']:.0%} of completions were cut at {max_new_tokens} tokens: where "
                    "the answer comes later, raise sampling.max_new_tokens; where they run on after it, name what "
                    "should end them with sampling.stop (`pacedrl doctor` says where they end now)"
                )
            case "unmixed":
                return (
                    f"no group had both right and wrong completions for {UNMIXED_STEPS} steps: the prompts are too "
                    "hard or too easy for this model; change data.train, or raise sampling.group_size"
                )
            case "errors":
                share = metrics["verifier/errors"] / metrics["rollouts/step"]
                patience = ", raise verifier.timeout_s" if error is not None and "timed out" in error else ""
                return (
                    f"the verifier failed on {share:.0%} of completions, which are left out; its commonest error: "
                    f"{error}. See samples.jsonl{patience}, or run `pacedrl doctor`"
                )
            case "capped":
                return (
                    f"the gate kept only {metrics['gate/kept']:.0f} groups of {metrics['gate/batches']:.0f} batches, "
                    "and the step trained on no more: add prompts of medium difficulty to data.train, or raise "
                    "gate.max_batches if that was the limit"
                )
            case "mismatch":
                return (
                    f"sampler and trainer disagree by {metrics['mismatch/logprob_mean']:.3f} nats a token (bound "
                    f"{MISMATCH_NATS}): set model.attn_implementation=eager, or train in higher precision"
                )
            case _:
                return (
                    "the loss or its gradient was not finite; the optimiser step was skipped. Lower "
                    "optimizer.learning_rate, or raise objective.beta where the objective has one; "
                    f"{SKIPPED_IN_A_ROW} steps in a row without an update end the run"
                )
