"""The problems of a run: the rules of `pacedrl.diagnosis.rules`, applied to the figures in its logs.

The figures are those of the latest ``RECENT_STEPS`` unless stated otherwise: a problem that has passed is not reported.
A rule is skipped if the logs hold too little for it.
"""

from collections.abc import Iterator

import numpy as np

from pacedrl.diagnosis import rules
from pacedrl.diagnosis.rules import FEWEST_STEPS, RECENT_STEPS, SKIPPED_IN_A_ROW, UNMIXED_STEPS, Finding
from pacedrl.report.held_out import held_out_change, mean_accuracy
from pacedrl.report.run import Floats, RunLogs
from pacedrl.report.series import chance_error, judged_prompts, replayed_share

MISSED_PROMPTS = 50
"""Minimum number of prompts for a finding about the calibration of estimates."""


def diagnose(run: RunLogs) -> list[Finding]:
    """Return all findings, the worst first; none for a run without steps."""
    if not run.metrics:
        return []
    found = [finding for finding in _findings(run) if finding is not None]
    return sorted(found, key=lambda finding: finding.severity != "bad")


def _findings(run: RunLogs) -> Iterator[Finding | None]:
    config = run.config
    yield _not_finite(run)
    error = next((f"; the first in samples.jsonl: {row['error'][:120]}" for row in run.samples if row.get("error")), "")
    errors, completions = (run.series(name).sum() for name in ("verifier/errors", "rollouts/step"))
    yield rules.verifier_errors(config, errors, completions, error)
    yield rules.truncated(config, _recent_mean(run, "completion/truncated"))
    yield _no_mixed_groups(run)
    yield from _held_out(run)
    yield _entropy_collapse(run)
    gap = np.where(run.series("rollouts/age") == 0, run.series("mismatch/logprob_mean"), np.nan)  # of equal weights
    yield rules.sampler_trainer_gap(config, _mean(gap[-RECENT_STEPS:]))
    yield _not_calibrated(run)
    yield rules.stale_estimates(config, run.series("estimator/stale")[-1])
    kl = _known(run.series("kl/old_beta")[-RECENT_STEPS:])
    yield rules.kl_large(config, kl) if len(kl) else None
    yield rules.replay_dominates(config, _mean(replayed_share(run)[-RECENT_STEPS:]))
    steps = min(len(run.metrics), RECENT_STEPS)
    capped, kept, batches = (_recent_mean(run, f"gate/{name}") for name in ("capped", "kept", "batches"))
    yield rules.gate_capped(config, capped, steps, kept, batches)


def _not_finite(run: RunLogs) -> Finding | None:
    """Apply the rule to the whole run."""
    skipped = run.series("optim/skipped_updates") > 0
    latest = run.series("optim/skipped")[-SKIPPED_IN_A_ROW:]
    ended = len(latest) == SKIPPED_IN_A_ROW and bool((latest > 0).all())
    last = int(run.steps[skipped][-1]) if skipped.any() else 0
    finite = {name: np.isfinite(run.series(name)[skipped]) for name in ("loss/objective", "grad_norm")}
    finite_loss = bool(finite["loss/objective"].all()) and not finite["grad_norm"].any()
    return rules.not_finite(run.config, int(skipped.sum()), len(skipped), last, ended, finite_loss)


def _no_mixed_groups(run: RunLogs) -> Finding | None:
    unmixed = run.series("reward/mixed_groups") == 0.0
    rewards = _known(run.series("reward/mean")[unmixed])
    # Without any reward nothing was judged, which is the finding of another rule.
    return rules.no_mixed_groups(run.config, unmixed.tolist(), float(rewards.mean())) if len(rewards) else None


def _held_out(run: RunLogs) -> Iterator[Finding | None]:
    """Apply the rules that compare evaluations, which need two of them."""
    change = held_out_change(run)
    if change is None:
        return
    yield rules.not_learning(run.config, change, run.evals[-1]["step"])
    best = int(np.argmax(mean_accuracy(run, 1).mean))
    since_best = held_out_change(run, comparisons=len(run.evals) - 1, since=best)
    if best > 0 and since_best is not None:
        yield rules.past_its_best(run.config, since_best, run.evals[best]["step"])
    changes = {task: held_out_change(run, task, len(run.tasks)) for task in run.tasks}
    yield rules.forgetting(run.config, {task: change for task, change in changes.items() if change is not None})


def _entropy_collapse(run: RunLogs) -> Finding | None:
    first = _mean(run.series("entropy")[:UNMIXED_STEPS])
    now, mixed, reward = (_recent_mean(run, name) for name in ("entropy", "reward/mixed_groups", "reward/mean"))
    if len(run.metrics) < 2 * UNMIXED_STEPS or np.isnan([first, now, mixed, reward]).any():
        return None
    return rules.entropy_collapse(run.config, first, now, mixed, reward)


def _not_calibrated(run: RunLogs) -> Finding | None:
    last = run.metrics[-1]["step"]
    prompts = judged_prompts(run.groups)
    recent = prompts[(prompts.step > last - RECENT_STEPS) & (prompts.trials > 1)]
    if last < FEWEST_STEPS or len(recent) < MISSED_PROMPTS:
        return None
    return rules.not_calibrated(
        run.config,
        last,
        recent.estimate - recent.observed,
        recent.variance / recent.trials,
        float(chance_error(recent).mean()),
        float(recent.trials.mean()),
    )


def _recent_mean(run: RunLogs, name: str) -> float:
    return _mean(run.series(name)[-RECENT_STEPS:])


def _mean(values: Floats) -> float:
    """Return the mean of the known values; NaN if none is known."""
    known = _known(values)
    return float(known.mean()) if len(known) else np.nan


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]
