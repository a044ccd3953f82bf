"""Each warning at its bound, from both sides, and only once; three steps that are not finite end the run."""

from __future__ import annotations

import math

import pytest

from pacedrl.training.alarms import Alarms

GOOD = {
    "reward/mixed_groups": 0.5,
    "optim/skipped": 0.0,
    "rollouts/age": 0.0,
    "optim/skipped_updates": 0.0,
    "loss/objective": 2.0,
    "grad_norm": 0.5,
    "completion/truncated": 0.0,
    "verifier/errors": 0.0,
    "rollouts/step": 100.0,
    "mismatch/logprob_mean": 1e-6,
    "gate/capped": 0.0,
    "gate/kept": 3.0,
    "gate/batches": 10.0,
}


def check(alarms: Alarms, **changes: float) -> list[str]:
    renamed = {name.replace("__", "/"): value for name, value in changes.items()}
    assert renamed.keys() <= GOOD.keys()
    return alarms.check(GOOD | renamed, {"sampling": {"max_new_tokens": 64, "prompts_per_step": 4}})


def test_a_good_step_gives_no_warning() -> None:
    alarms = Alarms()
    assert check(alarms) == []
    assert alarms == Alarms()


@pytest.mark.parametrize(
    ("name", "fine", "bad", "said"),
    [
        ("completion__truncated", 0.5, 0.51, "51% of completions were cut at 64 tokens"),
        ("verifier__errors", 5.0, 6.0, "the verifier failed on 6% of completions"),
        (
            "mismatch__logprob_mean",
            0.05,
            0.051,
            "sampler and trainer disagree by 0.051 nats per token (up to 0.05 is rounding)",
        ),
        ("gate__capped", 0.0, 1.0, "the gate kept only 3 groups of 10 batches"),
        ("optim__skipped_updates", 0.0, 1.0, "the loss or its gradient was not finite"),
    ],
)
def test_each_bound_from_both_sides_and_said_once(name: str, fine: float, bad: float, said: str) -> None:
    alarms = Alarms()
    assert check(alarms, **{name: fine}) == []
    [warning] = check(alarms, **{name: bad})
    assert warning.startswith(said)
    assert "\n" not in warning
    assert check(alarms, **{name: bad}) == []
    assert check(alarms) == []
    assert check(alarms, **{name: bad}) == []


def test_the_share_of_verifier_errors_counts_not_their_number() -> None:
    assert check(Alarms(), verifier__errors=50.0, rollouts__step=1000.0) == []
    assert len(check(Alarms(), verifier__errors=51.0, rollouts__step=1000.0)) == 1


def test_five_steps_in_a_row_without_a_mixed_group() -> None:
    alarms = Alarms()
    for _ in range(4):
        assert check(alarms, reward__mixed_groups=0.0) == []
    assert check(alarms, reward__mixed_groups=0.01) == []
    assert alarms.unmixed_steps == 0
    for _ in range(4):
        assert check(alarms, reward__mixed_groups=0.0) == []
    [warning] = check(alarms, reward__mixed_groups=0.0)
    assert warning.startswith("no group had both right and wrong completions for 5 steps")
    assert check(alarms, reward__mixed_groups=0.0) == []


def test_three_skipped_steps_in_a_row_must_stop_two_twice_need_not() -> None:
    alarms = Alarms()
    for skipped in (1, 1, 0, 1, 1):
        check(alarms, optim__skipped=float(skipped))
        assert not alarms.must_stop
    assert alarms.skipped_steps == 2
    check(alarms, optim__skipped=1.0)
    assert alarms.must_stop


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_though_the_loss_is_does_not_blame_the_learning_rate(norm: float) -> None:
    for loss, kernels in ((2.0, True), (math.nan, False), (math.inf, False)):
        alarms = Alarms()
        bad = {"optim__skipped": 1.0, "optim__skipped_updates": 1.0, "loss__objective": loss, "grad_norm": norm}
        [warning] = check(alarms, **bad)
        check(alarms, **bad)
        check(alarms, **bad)
        assert alarms.must_stop
        first = warning.split("Remedy: ")[1]
        assert first.startswith("suspect a numerical fault first" if kernels else "lower optimizer.learning_rate")
        assert ("attn_implementation=eager" in alarms.must_stop[1]) == kernels
        assert ("optimizer.learning_rate" in alarms.must_stop[1]) == (not kernels)


def test_an_unknown_mismatch_is_not_an_alarm() -> None:
    assert check(Alarms(), mismatch__logprob_mean=math.nan) == []


def test_several_at_once_are_each_said() -> None:
    warnings = check(Alarms(), completion__truncated=1.0, verifier__errors=100.0, optim__skipped_updates=1.0)
    assert len(warnings) == 3


def test_what_was_said_before_a_resume_is_not_said_again() -> None:
    alarms = Alarms({"truncated"}, unmixed_steps=4, skipped_steps=2)
    bad = {"completion__truncated": 0.9, "optim__skipped": 1.0, "optim__skipped_updates": 1.0}
    assert check(alarms, **bad, reward__mixed_groups=0.0) != []
    assert alarms.must_stop
    assert alarms.said == {"truncated", "unmixed", "not finite"}
