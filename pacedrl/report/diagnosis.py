"""What a run's logs say is wrong, with the figures that say so and the setting to change.

Each rule is a function of the logs alone, and silent where they hold too little to tell. The figures are of the latest
``RECENT_STEPS`` unless a rule says otherwise: what went wrong at the start and mended is no finding. Thresholds that an
alarm during training has too (`pacedrl.training.alarms`) are the alarm's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pacedrl.method.estimator import STALE_STEPS
from pacedrl.report.figures import Z_95, chance_error, judged, mean_curve, replayed_share
from pacedrl.report.progress import held_out_change
from pacedrl.report.run import Floats, RunLogs
from pacedrl.training.alarms import (
    MISMATCH_NATS,
    SKIPPED_IN_A_ROW,
    TRUNCATED_SHARE,
    UNMIXED_STEPS,
    VERIFIER_ERROR_SHARE,
)

RECENT_STEPS = 20
"""Enough to average the noise of batches, few enough to be about the policy as it is."""
FEWEST_STEPS = 50
"""Before that, neither a policy nor log Z need have got anywhere: in the demo log Z takes some 30."""
SEEN_GAIN = 0.05
"""An evaluation whose interval of the change is within ± this would have shown a gain worth having; from a wider one
nothing follows."""
SOLVED = 0.95
"""Held-out accuracy from which there is no gain of that size left."""
MISSED_ACCURACY = 0.25
"""Root mean square error of estimates, the noise of the completions taken off. Thinking ½ of prompts whose accuracies
are spread evenly over [0, 1] misses them by 0.29; the demo's estimates, after 50 steps, by less than 0.2."""
MISSED_PROMPTS = 50
"""Prompts from which that error can be told."""
KL_ACCURACY = 0.02
"""β·KL, in accuracy: five times the largest mean in the paper (0.004), still small beside the width of selection."""
STALE_SHARE = 0.4
"""Of the prompts. What is stale is wrong by little if the policy moves little; so not the first few."""
REPLAYED_SHARE = 0.5
CAPPED_SHARE = 0.1
"""Of steps. A gate that fails now and then costs little."""
LEFT_OF_ENTROPY = 0.1
"""Share of its first value, below which entropy has collapsed if ..."""
MIXED_SHARE = 0.2
"""... no more than this share of groups is mixed, and ..."""
UNSOLVED_REWARD = 0.9
"""... it is not because the prompts are solved. A policy that became sure and right has little entropy too."""
FORGOTTEN = 0.05
"""Drop of pass@1 that matters, if it is told from chance."""
EXPLORED = 0.1
"""Share of prompts drawn uniformly that keeps every kind of them in training."""


@dataclass(frozen=True)
class Finding:
    """``id`` is that of its paragraph in symptoms.md; ``remedy`` names settings. ``bad`` stops or spoils the run."""

    id: str
    severity: Literal["bad", "warn"]
    text: str
    remedy: str


def diagnose(run: RunLogs) -> list[Finding]:
    """All that the rules find, the worst first; none for a run without steps."""
    if not run.metrics:
        return []
    found = [finding for rule in RULES if (finding := rule(run)) is not None]
    return sorted(found, key=lambda finding: finding.severity != "bad")


def not_learning(run: RunLogs) -> Finding | None:
    """A fall of held-out pass@1, or no rise in a run and by evaluations long and exact enough to show one."""
    change = held_out_change(run)
    if change is None:
        return None
    text = f"held-out pass@1 {change.text} in {run.evals[-1]['step']:,} steps"
    if change.high < 0:
        return Finding("not-learning", "bad", f"Getting worse: {text}", _calmer(run))
    if change.low > 0 or change.before > SOLVED or change.half > SEEN_GAIN or run.evals[-1]["step"] < FEWEST_STEPS:
        return None
    rate = f"optimizer.learning_rate ({_setting(run, 'optimizer', 'learning_rate')})"
    return Finding("not-learning", "warn", f"Not learning: {text}", f"look at completions, then raise {rate}")


def past_its_best(run: RunLogs) -> Finding | None:
    """Held-out pass@1 has fallen from that of an earlier evaluation, which was not the first."""
    if len(run.evals) < 3:
        return None
    best = int(np.argmax(mean_curve(run, 1).mean))
    change = held_out_change(run, comparisons=len(run.evals) - 1, since=best)
    if best == 0 or change is None or change.high >= 0 or change.before - change.after <= FORGOTTEN:
        return None
    step = run.evals[best]["step"]
    return Finding(
        "past-its-best",
        "warn",
        f"Past its best: held-out pass@1 {change.before:.3f} at step {step:,}, {change.after:.3f} now",
        f"take the checkpoint of step {step:,} if it is kept (checkpoint.keep); {_calmer(run)}",
    )


def forgetting(run: RunLogs) -> Finding | None:
    """A task that is done worse than before training."""
    changes = {task: held_out_change(run, task, len(run.tasks)) for task in run.tasks}
    worse = {
        task: change
        for task, change in changes.items()
        if change is not None and change.high < 0 and change.before - change.after > FORGOTTEN
    }
    if not worse or len(run.tasks) == 1:  # of one task that is "not learning"
        return None
    listed = "; ".join(f"{task} {change.before:.2f} → {change.after:.2f}" for task, change in worse.items())
    selection = run.config.get("selection", {})
    explored = 1.0 if selection.get("method") == "uniform" else float(selection.get("explore_fraction", 0.0))
    explore = f"set selection.explore_fraction to {EXPLORED} (now {explored:g}), or " if explored < EXPLORED else ""
    return Finding(
        "forgetting",
        "warn",
        f"Forgotten since the start: held-out pass@1 of {listed}",
        f"{explore}lower optimizer.learning_rate ({_setting(run, 'optimizer', 'learning_rate')})",
    )


def not_calibrated(run: RunLogs) -> Finding | None:
    """Estimates miss observed accuracies by more than chance and what even a rough estimate would."""
    if run.metrics[-1]["step"] < FEWEST_STEPS:
        return None
    prompts = judged(run.groups)
    recent = prompts.of((prompts.step > run.metrics[-1]["step"] - RECENT_STEPS) & (prompts.trials > 1))
    if len(recent) < MISSED_PROMPTS:
        return None
    # The sample variance over n is what the mean of n completions misses the accuracy by: unbiased, for any reward.
    square = np.square(recent.estimate - recent.observed) - recent.variance / recent.trials
    surely = float(square.mean() - Z_95 * square.std(ddof=1) / math.sqrt(len(square)))
    if surely <= MISSED_ACCURACY**2:
        return None
    error = recent.estimate - recent.observed
    estimator = _setting(run, "estimator", "name")
    biased = abs(error.mean()) > math.sqrt(square.mean()) / 2
    what = "Z is" if estimator == "partition" else "Accuracy estimates are"
    return Finding(
        "not-calibrated",
        "warn",
        f"{what} not calibrated: MAE {np.abs(error).mean():.2f} after {run.metrics[-1]['step']:,} steps "
        f"({chance_error(recent).mean():.2f} is what {recent.trials.mean():.0f} samples a prompt give by chance), "
        f"bias {error.mean():+.2f}",
        _calibration_remedy(run, estimator, biased),
    )


def _calibration_remedy(run: RunLogs, estimator: str, biased: bool) -> str:
    if estimator == "counts":
        return "set estimator.name=combined, which knows of prompts that were never drawn, or lower estimator.discount"
    rate = f"raise partition.learning_rate ({_setting(run, 'partition', 'learning_rate')})"
    return rate if biased or estimator == "combined" else f"{rate}, or set estimator.name=combined"


def kl_large(run: RunLogs) -> Finding | None:
    """β·KL(π_old‖π_θ), by which β·log Z overstates accuracy."""
    kl = _recent(run, "kl/old_beta")
    if not len(kl) or kl.mean() - Z_95 * kl.std() / math.sqrt(len(kl)) <= KL_ACCURACY:
        return None
    return Finding(
        "kl-large",
        "warn",
        f"β·KL is large: {kl.mean():.3f}, by which β·log Z overstates accuracy (the paper's is below 0.004)",
        _closer_policies(run),
    )


def _closer_policies(run: RunLogs) -> str:
    """What keeps the policy that is trained near the one that was sampled."""
    optimizer = run.config.get("optimizer", {})
    steps = [name for name in ("mini_batches", "epochs") if optimizer.get(name, 1) > 1]
    lower = [f"optimizer.{name} ({_setting(run, 'optimizer', name)})" for name in [*steps, "learning_rate"]]
    ahead = "set sampling.ahead to false, or " if run.config.get("sampling", {}).get("ahead") else ""
    return f"{ahead}lower {' or '.join(lower)}"


def stale_estimates(run: RunLogs) -> Finding | None:
    """Much of the training set's estimates rest on old evidence."""
    stale = run.series("estimator/stale")[-1]
    if not stale > STALE_SHARE:
        return None
    counts = _setting(run, "estimator", "name") == "counts"
    share = _setting(run, "partition", "rescore_share")
    return Finding(
        "stale-estimates",
        "warn",
        f"Estimates are stale for {stale:.0%} of prompts: they rest on what is more than {STALE_STEPS} steps old",
        "set estimator.name=combined, or raise selection.explore_fraction"
        if counts
        else f"raise partition.rescore_share ({share})",
    )


def no_mixed_groups(run: RunLogs) -> Finding | None:
    """Steps in a row, up to now or in most of the latest, without a group of different rewards."""
    unmixed = run.series("reward/mixed_groups") == 0.0
    recent = unmixed[-RECENT_STEPS:]
    if _longest(recent) < UNMIXED_STEPS or (not recent[-UNMIXED_STEPS:].all() and recent.mean() < 0.5):
        return None
    rewards = _known(run.series("reward/mean")[unmixed])
    if not len(rewards):
        return None  # nothing was judged: what the verifier failed on is another finding
    reward = float(rewards.mean())
    why = "too hard" if reward < 0.5 else "too easy"
    return Finding(
        "no-mixed-groups",
        "bad",
        f"No mixed groups in {unmixed.sum()} of {len(unmixed)} steps, mean reward {reward:.2f}: prompts {why} for this "
        "model, or a verifier that says the same of everything",
        f"change data.train, or raise sampling.group_size ({_setting(run, 'sampling', 'group_size')})",
    )


def truncated(run: RunLogs) -> Finding | None:
    """Completions cut at the limit."""
    share = _recent(run, "completion/truncated")
    if not len(share) or share.mean() <= TRUNCATED_SHARE:
        return None
    return Finding(
        "truncated",
        "bad",
        f"{share.mean():.0%} of completions truncated",
        f"raise sampling.max_new_tokens ({_setting(run, 'sampling', 'max_new_tokens')}) if answers come later; if "
        "completions run on after them, name what should end them with sampling.stop",
    )


def verifier_errors(run: RunLogs) -> Finding | None:
    """Completions that the verifier could not judge, over the whole run."""
    errors, rollouts = run.series("verifier/errors").sum(), run.series("rollouts/step").sum()
    if errors <= VERIFIER_ERROR_SHARE * rollouts:
        return None
    first = next((row["error"] for row in run.samples if row.get("error")), None)
    example = "" if first is None else f"; the first in samples.jsonl: {first[:120]}"
    return Finding(
        "verifier-errors",
        "bad",
        f"The verifier failed on {errors / rollouts:.0%} of completions, which are left out{example}",
        f"mend the reward, raise verifier.timeout_s ({_setting(run, 'verifier', 'timeout_s')}), or run "
        "`pacedrl doctor`",
    )


def replay_dominates(run: RunLogs) -> Finding | None:
    """Most of what is trained on was replayed."""
    share = _known(replayed_share(run)[-RECENT_STEPS:])
    if not len(share) or share.mean() <= REPLAYED_SHARE:
        return None
    return Finding(
        "replay-dominates",
        "warn",
        f"Replay dominates the batch: {share.mean():.0%} of the completions trained on",
        f"lower replay.capacity ({_setting(run, 'replay', 'capacity')}), or raise sampling.prompts_per_step "
        f"({_setting(run, 'sampling', 'prompts_per_step')})",
    )


def sampler_trainer_gap(run: RunLogs) -> Finding | None:
    """Log-probabilities of sampler and trainer differ, where both have the same weights."""
    same = run.series("rollouts/age")[-RECENT_STEPS:] == 0
    gap = _known(run.series("mismatch/logprob_mean")[-RECENT_STEPS:][same])
    if not len(gap) or gap.mean() <= MISMATCH_NATS:
        return None
    return Finding(
        "sampler-trainer-gap",
        "bad",
        f"Sampler–trainer gap of {gap.mean():.2g} nats a token (up to {MISMATCH_NATS} is rounding)",
        "set model.attn_implementation=eager, or train in higher precision",
    )


def gate_capped(run: RunLogs) -> Finding | None:
    """Steps whose gate did not find enough to train on."""
    capped = _recent(run, "gate/capped")
    if not len(capped) or capped.mean() <= CAPPED_SHARE:
        return None
    kept = _recent(run, "gate/kept").mean()
    return Finding(
        "gate-capped",
        "warn",
        f"The gate ran out in {capped.mean():.0%} of steps: {kept:.0f} groups kept, mean, of "
        f"{_setting(run, 'sampling', 'prompts_per_step')} wanted",
        "add prompts of medium difficulty to data.train, or raise gate.max_batches",
    )


def not_finite(run: RunLogs) -> Finding | None:
    """Updates skipped, in the whole run: each was a loss or gradient that was infinite or NaN."""
    skipped = run.series("optim/skipped_updates") > 0
    if not skipped.any():
        return None
    stops = len(skipped) >= SKIPPED_IN_A_ROW and bool((run.series("optim/skipped")[-SKIPPED_IN_A_ROW:] > 0).all())
    return Finding(
        "not-finite",
        "bad",
        f"The loss or its gradient was not finite in {skipped.sum()} of {len(skipped)} steps, "
        f"the last of them {run.steps[skipped][-1]:.0f}" + (": this ended the run" if stops else ""),
        _calmer(run),
    )


def entropy_collapse(run: RunLogs) -> Finding | None:
    """Hardly any entropy, hardly any mixed group, and yet not right."""
    if len(run.metrics) < 2 * UNMIXED_STEPS:
        return None
    first = _known(run.series("entropy")[:UNMIXED_STEPS])
    now, mixed, reward = (_recent(run, name) for name in ("entropy", "reward/mixed_groups", "reward/mean"))
    if not len(first) or not len(now) or not len(reward):
        return None
    if now.mean() > LEFT_OF_ENTROPY * first.mean() or mixed.mean() > MIXED_SHARE or reward.mean() > UNSOLVED_REWARD:
        return None
    return Finding(
        "entropy-collapse",
        "bad",
        f"Entropy has collapsed: {first.mean():.2g} → {now.mean():.2g} nats a token, {mixed.mean():.0%} of groups "
        f"mixed at a mean reward of {reward.mean():.2f}",
        f"go back to an earlier checkpoint, and {_calmer(run)}",
    )


RULES: tuple[Callable[[RunLogs], Finding | None], ...] = (
    not_finite,
    verifier_errors,
    truncated,
    no_mixed_groups,
    not_learning,
    past_its_best,
    entropy_collapse,
    sampler_trainer_gap,
    forgetting,
    not_calibrated,
    stale_estimates,
    kl_large,
    replay_dominates,
    gate_capped,
)


def _recent(run: RunLogs, name: str) -> Floats:
    """What is known of a metric's latest steps."""
    return _known(run.series(name)[-RECENT_STEPS:])


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _longest(flags: NDArray[np.bool_]) -> int:
    """Length of the longest unbroken row of True."""
    longest = current = 0
    for flag in flags:
        current = current + 1 if flag else 0
        longest = max(longest, current)
    return longest


def _calmer(run: RunLogs) -> str:
    """Smaller changes of the policy, by what its objective has."""
    beta = run.config.get("objective", {}).get("beta")
    softer = "" if beta is None else f", or raise objective.beta ({beta:g})"
    return f"lower optimizer.learning_rate ({_setting(run, 'optimizer', 'learning_rate')}){softer}"


def _setting(run: RunLogs, section: str, name: str) -> str:
    value = run.config.get(section, {}).get(name)
    return "null" if value is None else str(value)
