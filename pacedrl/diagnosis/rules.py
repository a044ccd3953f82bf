"""Rules that detect problems of a run from a few figures, and their messages.

Warnings during training (`pacedrl.training.alarms`) apply a rule to the figures of one step, findings of the report
(`pacedrl.report.findings`) apply it to those of many. A rule returns None if nothing is wrong. Its first argument is
the resolved configuration, as in the run's config.yaml.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import STALE_STEPS

Settings = Mapping[str, Any]
Floats = NDArray[np.float64]

Z_95 = 1.96
RECENT_STEPS = 20
"""Most findings use this many steps: enough to average out noise, few enough to describe the current policy."""
FEWEST_STEPS = 50
"""Before this step, a lack of improvement is not a finding: in the demo, log Z takes some 30 steps."""
TRUNCATED_SHARE = 0.5
UNMIXED_STEPS = 5
VERIFIER_ERROR_SHARE = 0.05
MISMATCH_NATS = 0.05
"""Mean |log-prob gap| per token between sampler and trainer. In float32 it is about 1e-6, in bfloat16 about 0.01."""
SKIPPED_IN_A_ROW = 3
SUSPECT_KERNELS = (
    "suspect a numerical fault first, in bfloat16 or in a kernel of attention: set model.attn_implementation=eager, or "
    "update torch"
)
"""Remedy for gradients that are not finite although the loss is. That also happens to a policy that has diverged so far
that its norms overflow, but then the steps before it look wrong."""
CAPPED_SHARE = 0.1
"""Share of steps above which a failing gate is a finding: one that fails now and then costs little."""
SEEN_GAIN = 0.05
"""A useful gain of pass@1. An interval with a larger half-width could not have shown it, so it shows nothing."""
SOLVED = 0.95
"""Held-out accuracy above which a gain of `SEEN_GAIN` is no longer possible."""
FORGOTTEN = 0.05
"""A larger drop of pass@1 is a finding if chance does not explain it."""
EXPLORED = 0.1
"""Share of prompts drawn uniformly that keeps every kind of prompt in training."""
MISSED_ACCURACY = 0.25
"""A larger root mean square error of the estimates, without the noise of the completions, is a finding. An estimate of
½ for prompts whose accuracies are uniform over [0, 1] has an error of 0.29; the demo's estimates, after 50 steps, less
than 0.2."""
KL_ACCURACY = 0.02
"""A larger β·KL, in units of accuracy, is a finding. It is five times the largest mean in the paper (0.004)."""
STALE_SHARE = 0.4
"""Share of prompts. A stale estimate is off by little while the policy moves little, so a few do no harm."""
REPLAYED_SHARE = 0.5
LEFT_OF_ENTROPY = 0.1
"""Entropy has collapsed if it is below this share of its first value, ..."""
MIXED_SHARE = 0.2
"""... at most this share of groups is mixed, and ..."""
UNSOLVED_REWARD = 0.9
"""... the mean reward is below this: a policy that is sure and right also has little entropy."""


@dataclass(frozen=True)
class Finding:
    """A problem: ``id`` is its paragraph in symptoms.md, ``remedy`` what to change; ``bad`` stops or spoils the run."""

    id: str
    severity: Literal["bad", "warn"]
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}. Remedy: {self.remedy}."


@dataclass(frozen=True)
class Change:
    """Change of a held-out accuracy from an earlier evaluation to the last; the 95% interval is ± ``half``."""

    before: float
    after: float
    half: float

    @property
    def low(self) -> float:
        return self.after - self.before - self.half

    @property
    def high(self) -> float:
        return self.after - self.before + self.half

    @property
    def text(self) -> str:
        interval = f"95% interval {self.low:+.3f} to {self.high:+.3f}"
        return f"{self.before:.3f} → {self.after:.3f} ({self.after - self.before:+.3f}, {interval})"


def not_finite(config: Settings, skipped: int, steps: int, last: int, ended: bool, finite_loss: bool) -> Finding | None:
    """Updates were skipped in ``skipped`` of ``steps`` steps because their loss or gradient was infinite or NaN.

    ``finite_loss`` says that it was the gradient alone.
    """
    if not skipped:
        return None
    where = "" if steps == 1 else f" in {skipped} of {steps} steps, the last of them {last}"
    cause = "The gradient of a finite loss" if finite_loss else "The loss or its gradient"
    what = f"{cause} was not finite{where}; the optimiser step was skipped"
    end = ": this ended the run" if ended else f" ({SKIPPED_IN_A_ROW} steps in a row without an update end the run)"
    kernels = f"{SUSPECT_KERNELS}; if that changes nothing, " if finite_loss else ""
    return Finding("not-finite", "bad", what + end, kernels + _calmer(config))


def verifier_errors(config: Settings, errors: float, completions: float, example: str) -> Finding | None:
    """The verifier could not judge some completions; ``example`` continues the text with one of its errors."""
    if errors <= VERIFIER_ERROR_SHARE * completions:
        return None
    text = f"The verifier failed on {errors / completions:.0%} of completions, which are left out{example}"
    timeout = f"raise verifier.timeout_s ({_setting(config, 'verifier', 'timeout_s')}) if it timed out"
    remedy = f"see the errors in samples.jsonl and fix the reward, {timeout}, or run `pacedrl doctor`"
    return Finding("verifier-errors", "bad", text, remedy)


def truncated(config: Settings, share: float) -> Finding | None:
    """Most completions are cut at the limit."""
    if not share > TRUNCATED_SHARE:
        return None
    limit = _setting(config, "sampling", "max_new_tokens")
    remedy = (
        f"raise sampling.max_new_tokens ({limit}) if the answer comes later; if completions run on after the answer, "
        "name what should end them with sampling.stop (`pacedrl doctor` says where they end now)"
    )
    return Finding("truncated", "bad", f"{share:.0%} of completions were cut at {limit} tokens", remedy)


def no_mixed_groups(config: Settings, unmixed: Sequence[bool], reward: float | None) -> Finding | None:
    """No group had different rewards in several steps in a row, either until now or in most of the recent steps.

    ``unmixed`` says of each step whether it had no mixed group; ``reward`` is the mean reward of such steps, None if it
    is unknown.
    """
    recent = list(unmixed[-RECENT_STEPS:])
    in_a_row = max((len(list(group)) for flag, group in groupby(recent) if flag), default=0)
    if in_a_row < UNMIXED_STEPS or not (all(recent[-UNMIXED_STEPS:]) or np.mean(recent) >= 0.5):
        return None
    count, steps = sum(unmixed), len(unmixed)
    where = f"for {steps} steps" if count == steps else f"in {count} of {steps} steps"
    level = "" if reward is None else f", mean reward {reward:.2f}"
    why = "too hard or too easy" if reward is None else "too hard" if reward < 0.5 else "too easy"
    text = (
        f"No group had both right and wrong completions {where}{level}: the prompts are {why} for this model, or the "
        "verifier gives everything the same reward"
    )
    remedy = f"change data.train, or raise sampling.group_size ({_setting(config, 'sampling', 'group_size')})"
    return Finding("no-mixed-groups", "bad", text, remedy)


def not_learning(config: Settings, change: Change, step: int) -> Finding | None:
    """Held-out pass@1 has fallen, or has not risen although the evaluations were exact enough to show a rise."""
    text = f"held-out pass@1 {change.text} in {step:,} steps"
    if change.high < 0:
        return Finding("not-learning", "bad", f"Getting worse: {text}", _calmer(config))
    if change.low > 0 or change.before > SOLVED or change.half > SEEN_GAIN or step < FEWEST_STEPS:
        return None
    remedy = f"look at completions, then raise {_learning_rate(config)}"
    return Finding("not-learning", "warn", f"Not learning: {text}", remedy)


def past_its_best(config: Settings, change: Change, step: int) -> Finding | None:
    """Held-out pass@1 has fallen since ``step``, at which it was highest."""
    if change.high >= 0 or change.before - change.after <= FORGOTTEN:
        return None
    text = f"Past its best: held-out pass@1 {change.before:.3f} at step {step:,}, {change.after:.3f} now"
    remedy = f"take the checkpoint of step {step:,} if it is kept (checkpoint.keep); {_calmer(config)}"
    return Finding("past-its-best", "warn", text, remedy)


def entropy_collapse(config: Settings, first: float, now: float, mixed: float, reward: float) -> Finding | None:
    """Little entropy is left and few groups are mixed, although the prompts are not solved."""
    if now > LEFT_OF_ENTROPY * first or mixed > MIXED_SHARE or reward > UNSOLVED_REWARD:
        return None
    groups = f"{mixed:.0%} of groups mixed at a mean reward of {reward:.2f}"
    text = f"Entropy has collapsed: {first:.2g} → {now:.2g} nats per token, {groups}"
    return Finding("entropy-collapse", "bad", text, f"go back to an earlier checkpoint, and {_calmer(config)}")


def sampler_trainer_gap(config: Settings, nats: float) -> Finding | None:
    """Sampler and trainer compute different log-probabilities from the same weights."""
    if not nats > MISMATCH_NATS:
        return None
    text = f"Sampler and trainer disagree by {nats:.2g} nats per token (up to {MISMATCH_NATS} is rounding)"
    remedy = "set model.attn_implementation=eager, or train in higher precision"
    return Finding("sampler-trainer-gap", "bad", text, remedy)


def forgetting(config: Settings, changes: Mapping[str, Change]) -> Finding | None:
    """Some of several held-out tasks have a lower accuracy than before training."""
    worse = {name: c for name, c in changes.items() if c.high < 0 and c.before - c.after > FORGOTTEN}
    if not worse or len(changes) == 1:  # a single task is a case for `not_learning`
        return None
    listed = "; ".join(f"{task} {change.before:.2f} → {change.after:.2f}" for task, change in worse.items())
    selection = config.get("selection", {})
    explored = 1.0 if selection.get("method") in ("uniform", "greso") else float(selection.get("explore_fraction", 0.0))
    explore = f"set selection.explore_fraction to {EXPLORED} (now {explored:g}), or " if explored < EXPLORED else ""
    text = f"Forgotten since the start: held-out pass@1 of {listed}"
    return Finding("forgetting", "warn", text, f"{explore}lower {_learning_rate(config)}")


def not_calibrated(
    config: Settings, step: int, error_P: Floats, variance_P: Floats, chance: float, samples: float
) -> Finding | None:
    """Estimates miss the observed accuracies by more than chance explains and by more than a rough estimate would.

    ``error_P`` is estimate − observed accuracy of each prompt, ``variance_P`` the unbiased variance of the observed
    accuracy, ``chance`` the mean |error| of perfect estimates, ``samples`` the mean number of completions per prompt.
    """
    square_P = np.square(error_P) - variance_P
    surely = float(square_P.mean() - Z_95 * square_P.std(ddof=1) / math.sqrt(len(square_P)))
    if surely <= MISSED_ACCURACY**2:
        return None
    estimator = _setting(config, "estimator", "name")
    what = "Z is" if estimator == "partition" else "Accuracy estimates are"
    text = (
        f"{what} not calibrated: MAE {np.abs(error_P).mean():.2f} after {step:,} steps ({chance:.2f} by chance "
        f"with {samples:.0f} samples per prompt), bias {error_P.mean():+.2f}"
    )
    if estimator in ("counts", "bots"):
        remedy = "set estimator.name=combined, which also estimates prompts never drawn, or lower estimator.discount"
    else:
        remedy = "set partition.name=closed_form"
        if _setting(config, "partition", "name") == "closed_form":
            remedy = f"lower partition.discount ({_setting(config, 'partition', 'discount')})"
        if estimator != "combined" and abs(error_P.mean()) <= math.sqrt(square_P.mean()) / 2:
            remedy += ", or set estimator.name=combined"
    return Finding("not-calibrated", "warn", text, remedy)


def stale_estimates(config: Settings, share: float) -> Finding | None:
    """Many estimates of the training set rest on old evidence."""
    if not share > STALE_SHARE:
        return None
    remedy = "raise selection.explore_fraction"
    if _setting(config, "estimator", "name") == "counts":
        remedy = "set estimator.name=combined, or raise selection.explore_fraction"
    text = f"Estimates are stale for {share:.0%} of prompts: their evidence is more than {STALE_STEPS} steps old"
    return Finding("stale-estimates", "warn", text, remedy)


def kl_large(config: Settings, kl_S: Floats) -> Finding | None:
    """β·KL(π_old‖π_θ) of recent steps, by which β·log Z overstates accuracy, is large."""
    if kl_S.mean() - Z_95 * kl_S.std() / math.sqrt(len(kl_S)) <= KL_ACCURACY:
        return None
    optimizer = config.get("optimizer", {})
    steps = [name for name in ("mini_batches", "epochs") if optimizer.get(name, 1) > 1]
    lower = [f"optimizer.{name} ({_setting(config, 'optimizer', name)})" for name in steps]
    ahead = "set sampling.ahead to false, or " if config.get("sampling", {}).get("ahead") else ""
    text = f"β·KL is large: {kl_S.mean():.3f}, by which β·log Z overstates accuracy (the paper's is below 0.004)"
    return Finding("kl-large", "warn", text, f"{ahead}lower {' or '.join([*lower, _learning_rate(config)])}")


def replay_dominates(config: Settings, share: float) -> Finding | None:
    """Most of the completions trained on were replayed."""
    if not share > REPLAYED_SHARE:
        return None
    capacity = f"replay.capacity ({_setting(config, 'replay', 'capacity')})"
    prompts = f"sampling.prompts_per_step ({_setting(config, 'sampling', 'prompts_per_step')})"
    text = f"Replay dominates the batch: {share:.0%} of the completions trained on"
    return Finding("replay-dominates", "warn", text, f"lower {capacity}, or raise {prompts}")


def gate_capped(config: Settings, capped: float, steps: int, kept: float, batches: float) -> Finding | None:
    """The gate found too few groups in a share ``capped`` of ``steps`` steps; ``kept`` and ``batches`` are means."""
    if not capped > CAPPED_SHARE:
        return None
    wanted = _setting(config, "sampling", "prompts_per_step")
    over = "" if steps == 1 else f" (means over {steps} steps; it ran out in {capped:.0%} of steps)"
    text = f"The gate kept only {kept:.0f} groups of {batches:.0f} batches where {wanted} were wanted{over}"
    remedy = "add prompts of medium difficulty to data.train, or raise gate.max_batches if that was the limit"
    return Finding("gate-capped", "warn", text, remedy)


def _calmer(config: Settings) -> str:
    """Advise smaller changes of the policy, by the settings that the objective has."""
    beta = config.get("objective", {}).get("beta")
    softer = "" if beta is None else f", or raise objective.beta ({beta:g})"
    return f"lower {_learning_rate(config)}{softer}"


def _learning_rate(config: Settings) -> str:
    return f"optimizer.learning_rate ({_setting(config, 'optimizer', 'learning_rate')})"


def _setting(config: Settings, section: str, name: str) -> str:
    value = config.get(section, {}).get(name)
    return "null" if value is None else str(value)
