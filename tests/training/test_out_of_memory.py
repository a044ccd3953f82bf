"""Updates that run out of memory go on with smaller micro-batches, or say what to change."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_learner import BALANCE, UNCLIPPED, NewPolicy, assert_same, log_ratios, mixture, values

from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.passes import pass_cost, sequence_logprobs
from pacedrl.policy.policy import Policy
from pacedrl.training.learner import Learner
from pacedrl.types import Completion


def limit(policy: Policy, most: int) -> list[int]:
    """Let the policy run out of memory in passes of more than ``most`` sequences. Returns the sizes of all passes."""
    sizes: list[int] = []
    logprobs = policy.logprobs

    def limited(prompts: Sequence[Any], *rest: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return logprobs(prompts, *rest)

    policy.logprobs = limited  # type: ignore[method-assign]
    return sizes


def test_an_update_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(
    new_policy: NewPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    roomy, small = new_policy(), new_policy()
    batch, other = mixture(roomy), mixture(roomy)
    expected = Learner(roomy, UNCLIPPED, 10, 1.0, BALANCE).update(batch, 0)
    sizes = limit(small, 2)
    learner = Learner(small, UNCLIPPED, 10, 1.0, BALANCE)
    with caplog.at_level(logging.WARNING):
        actual = learner.update(other, 0)
    assert sizes == [6, 4, 2, 1, 1, 1, 1]  # the first two failed
    assert_same(values(small), values(roomy), atol=1e-5)  # nothing of the failed passes is left in the gradient
    assert log_ratios(other) == pytest.approx(log_ratios(batch), abs=1e-4)
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-5, nan_ok=True)
    (said,) = caplog.messages
    assert f"at most {int(learner.token_budget)} tokens" in said
    assert "optimizer.tokens_per_micro_batch" in said
    tried = len(sizes)
    learner.update(other, 1)
    assert sizes[tried:] == [2, 1, 1, 1, 1]  # the budget stays halved
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("patterns", [True, False], ids=["packed", "padded"])
def test_the_pass_that_failed_is_halved_not_a_budget_far_above_it(policy: Policy, patterns: bool) -> None:
    policy.takes_patterns = patterns
    batch = [
        Completion([5, 6, 7, 2], [-1.0] * 4, prompt_ids=[1, i, i], anchor_logprobs=[-1.0] * 4) for i in range(3, 11)
    ]
    sizes = limit(policy, 2)
    learner = Learner(policy, UNCLIPPED, 10, 1.0, BALANCE)
    assert learner.token_budget > 100 * pass_cost(batch, patterns)
    learner.accumulate_gradient(batch)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert learner.token_budget == math.ceil(pass_cost(batch[:4], patterns) / 2)  # whole, so the setting can take it


def test_log_probabilities_that_run_out_of_memory_are_computed_in_smaller_passes(policy: Policy) -> None:
    batch = mixture(policy)
    expected = sequence_logprobs(policy, batch, 1.0, 10_000)
    sizes = limit(policy, 2)
    actual = sequence_logprobs(policy, batch, 1.0, 10_000)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]
    assert [len(row) for row in actual] == [len(c.token_ids) for c in batch]
    for one, other in zip(actual, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("sharded", [True, False])
def test_log_probabilities_that_do_not_fit_are_an_input_error(policy: Policy, sharded: bool) -> None:
    batch = mixture(policy)
    sizes = limit(policy, 2 if sharded else 0)
    if sharded:
        policy.sharded = torch.nn.Module()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"^log-probabilities do not fit into memory: lower optimizer\.") as raised:
        sequence_logprobs(policy, batch, 1.0, 10_000)
    assert "\n" not in str(raised.value)
    assert sizes == ([6] if sharded else [6, 3, 1])


def test_memory_that_runs_out_in_a_backward_pass_leaves_no_gradient(new_policy: NewPolicy) -> None:
    roomy, small = new_policy(), new_policy()
    batch = mixture(roomy)
    expected = Learner(roomy, UNCLIPPED, 10, 1.0, BALANCE)
    expected.accumulate_gradient(batch)
    failures = [True, True]

    def fail_twice(gradient: torch.Tensor) -> torch.Tensor:
        if failures:
            failures.pop()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient

    small.parameters()[3].register_hook(fail_twice)
    Learner(small, UNCLIPPED, 10, 1.0, BALANCE).accumulate_gradient(batch)
    for one, other in zip(small.parameters(), roomy.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_one_sequence_that_does_not_fit_is_an_input_error(policy: Policy) -> None:
    batch = mixture(policy)
    before = values(policy)
    limit(policy, 0)
    with pytest.raises(InputError, match=r"a single completion does not fit into memory: set optimizer\.") as raised:
        Learner(policy, UNCLIPPED, 10, 1.0, BALANCE).update(batch, 0)
    assert "\n" not in str(raised.value)
    assert_same(values(policy), before)


def test_a_sharded_policy_that_runs_out_of_memory_stops(policy: Policy) -> None:
    """The other processes wait for its weights, so it cannot try again alone."""
    batch = mixture(policy)
    sizes = limit(policy, 2)
    policy.sharded = torch.nn.Module()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"^the update does not fit into memory: set optimizer\."):
        Learner(policy, UNCLIPPED, 10, 1.0, BALANCE).update(batch, 0)
    assert sizes == [6]


def test_an_optimiser_that_does_not_fit_is_an_input_error(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(policy, UNCLIPPED, 10, 1.0, BALANCE)

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(learner.optimizer, "step", full)
    with pytest.raises(InputError, match=r"the optimiser's step does not fit into memory: set "):
        learner.update(mixture(policy), 0)


class Threads(Ranks):
    """Ranks that are threads of this process."""

    def __init__(self, index: int, count: int, barrier: threading.Barrier, shared: dict[int, Any]) -> None:
        super().__init__(index, count)
        self.barrier, self.shared = barrier, shared

    def gather(self, value: Any) -> list[Any]:
        self.shared[self.index] = value
        self.barrier.wait(60)
        gathered = [self.shared[i] for i in range(self.count)]
        self.barrier.wait(60)
        return gathered

    def sum_gradients(self, parameters: Any) -> None:
        for parameter in parameters:
            parts = self.gather(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            total = sum(parts[1:], parts[0].clone())
            self.barrier.wait(60)
            parameter.grad = total


def on_two_ranks(policies: Sequence[Policy], work: Callable[[Learner], object]) -> list[Learner]:
    barrier, shared = threading.Barrier(2), {}  # type: ignore[var-annotated]
    learners = [
        Learner(policy, UNCLIPPED, 10, 1.0, BALANCE, ranks=Threads(i, 2, barrier, shared))
        for i, policy in enumerate(policies)
    ]
    failures: list[Exception] = []

    def run(learner: Learner) -> None:
        try:
            work(learner)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(learner,)) for learner in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return learners


def test_all_ranks_halve_when_one_runs_out_of_memory(new_policy: NewPolicy) -> None:
    alone, first, second = new_policy(), new_policy(), new_policy()
    batches = {id(policy): mixture(alone) for policy in (alone, first, second)}
    Learner(alone, UNCLIPPED, 10, 1.0, BALANCE).update(batches[id(alone)], 0)
    sizes = limit(first, 3), limit(second, 1)
    learners = on_two_ranks([first, second], lambda learner: learner.update(batches[id(learner.policy)], 0))
    assert learners[0].token_budget == learners[1].token_budget < UNCLIPPED.tokens_per_micro_batch
    assert sizes == ([3, 1, 1, 1], [3, 1, 1, 1])  # the first could have gone on with 3
    assert_same(values(first), values(second))
    assert_same(values(first), values(alone), atol=1e-5)


def test_a_model_that_cannot_checkpoint_is_refused_before_anything_is_sampled(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacedrl.policy.activations._layers", lambda _: [])
    asked = UNCLIPPED.model_copy(update={"gradient_checkpointing": True})
    with pytest.raises(InputError, match=r"optimizer\.gradient_checkpointing: .* does not support it; set it to false"):
        Learner(policy, asked, 10, 1.0, BALANCE)
    Learner(policy, UNCLIPPED, 10, 1.0, BALANCE)
