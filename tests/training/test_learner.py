"""One optimiser step on the tiny model, against the same step written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pacedrl.config import Config, OptimizerConfig
from pacedrl.policy.passes import micro_batches
from pacedrl.policy.policy import Policy
from pacedrl.training.learner import Learner, Update
from pacedrl.training.objectives import build_objective, trajectory_balance
from pacedrl.training.state import load_state, save_state
from pacedrl.types import Completion

NewPolicy = Callable[[], Policy]
CONFIG = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0)
UNCLIPPED = CONFIG.model_copy(update={"max_grad_norm": 1e9})
BALANCE = build_objective(Config()).loss
EPS = 1e-3
"""Adam's ε for comparing steps. With the usual 1e-8, Adam turns rounding errors of tiny gradients into whole steps."""
TEXTS = [("sort:312=", "123"), ("copy:12=", "12"), ("add:1234567+7654321=", "8888888"), ("reverse:45=", "5")]


def logprobs_of(policy: Policy, sequence: Completion, temperature: float) -> Tensor:
    """Compute log-probabilities [T, V] at the completion's tokens from the model's own logits."""
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]], device=policy.device)
    logits = policy.model(input_ids=ids).logits[0, len(sequence.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def taken(logprobs_TV: Tensor, sequence: Completion) -> Tensor:
    return logprobs_TV[torch.arange(len(sequence.token_ids)), torch.tensor(sequence.token_ids)]


def mixture(policy: Policy, temperature: float = 1.0) -> list[Completion]:
    """Fresh sequences with anchors near the policy, and replayed ones with anchors further away."""
    generator = torch.Generator().manual_seed(5)
    batch = []
    for i, (prompt, answer) in enumerate([*TEXTS, *TEXTS[:2]]):
        completion = [*policy.encode(answer)[1:], 2]
        sequence = Completion(completion, [], prompt_ids=policy.encode(prompt), advantage=3.0 * (i % 3) - 4.0)
        sequence.replayed = i >= 4
        own = taken(logprobs_of(policy, sequence, temperature), sequence).detach().cpu()
        noise = torch.randn(len(own), generator=generator) * (0.5 if sequence.replayed else 0.1)
        sequence.logprobs = sequence.anchor_logprobs = (own + noise).tolist()
        batch.append(sequence)
    return batch


def log_ratios(batch: Sequence[Completion]) -> list[float]:
    """Return the log-ratios that an update filled in."""
    return [math.nan if sequence.log_ratio is None else sequence.log_ratio for sequence in batch]


def values(policy: Policy) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in policy.model.parameters()]


def assert_same(left: Sequence[Tensor], right: Sequence[Tensor], atol: float = 0.0) -> None:
    for mine, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


class ByHand:
    """AdamW on the mean of δ², written out as formulas."""

    def __init__(self, policy: Policy, config: OptimizerConfig, temperature: float) -> None:
        self.policy, self.config, self.temperature = policy, config, temperature
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in policy.model.parameters()]
        self.steps = 0

    def update(self, batch: Sequence[Completion]) -> tuple[float, float, list[float]]:
        """Loss, norm of the gradient, and the log-ratios."""
        loss, ratios = torch.zeros(()), []
        for sequence in batch:
            assert sequence.anchor_logprobs is not None
            own = taken(logprobs_of(self.policy, sequence, self.temperature), sequence)
            ratio = own.sum() - sum(sequence.anchor_logprobs)
            loss = loss + (ratio - sequence.advantage) ** 2 / len(batch)
            ratios.append(ratio.item())
        parameters = list(self.policy.model.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        shrink = min(1.0, self.config.max_grad_norm / norm)
        (b1, b2), rate = self.config.betas, self.config.learning_rate
        self.steps += 1
        with torch.no_grad():
            for parameter, gradient, (m, v) in zip(parameters, gradients, self.moments, strict=True):
                gradient = gradient * shrink
                m.mul_(b1).add_((1 - b1) * gradient)
                v.mul_(b2).add_((1 - b2) * gradient**2)
                m_hat, v_hat = m / (1 - b1**self.steps), v / (1 - b2**self.steps)
                parameter.mul_(1 - rate * self.config.weight_decay).sub_(rate * m_hat / (v_hat.sqrt() + EPS))
        return loss.item(), norm, ratios


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("config", [CONFIG, UNCLIPPED], ids=["clipped", "unclipped"])
def test_updates_are_those_written_out_by_hand(
    new_policy: NewPolicy, config: OptimizerConfig, temperature: float
) -> None:
    ours, theirs = new_policy(), new_policy()
    batch = mixture(ours, temperature)
    learner, by_hand = Learner(ours, config, 10, temperature, BALANCE), ByHand(theirs, config, temperature)
    for group in learner.optimizer.param_groups:
        assert group["eps"] == 1e-8
        group["eps"] = EPS
    start = values(ours)
    for step in range(2):
        update = learner.update(batch, step)
        loss, norm, ratios = by_hand.update(batch)
        assert update.trained
        assert update.metrics["loss/objective"] == pytest.approx(loss, rel=1e-4)
        assert update.metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert norm > 1.0  # so that clipping shows
        assert log_ratios(batch) == pytest.approx(ratios, abs=1e-4)
    assert_same(values(ours), values(theirs), atol=1e-6)
    assert max(float((a - b).abs().max()) for a, b in zip(values(ours), start, strict=True)) > 1e-3


def test_the_step_lowers_the_loss(policy: Policy) -> None:
    batch = mixture(policy)
    learner = Learner(policy, CONFIG, 10, 1.0, BALANCE)
    losses = [learner.update(batch, step).metrics["loss/objective"] for step in range(8)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_current_anchor_is_the_policys_own_at_the_start(new_policy: NewPolicy) -> None:
    implicit, explicit = new_policy(), new_policy()
    batch = [replace(sequence, anchor_logprobs=None) for sequence in mixture(implicit)]
    logprobs_BT, _, mask_BT = explicit.logprobs([s.prompt_ids for s in batch], [s.token_ids for s in batch])
    own = [replace(s, anchor_logprobs=logprobs_BT[i][mask_BT[i]].tolist()) for i, s in enumerate(batch)]
    one = Learner(implicit, UNCLIPPED, 10, 1.0, BALANCE).update(batch, 0)
    other = Learner(explicit, UNCLIPPED, 10, 1.0, BALANCE).update(own, 0)
    assert log_ratios(batch) == [0.0] * len(batch)
    assert one.metrics["loss/objective"] == pytest.approx(sum(s.advantage**2 for s in batch) / len(batch), rel=1e-5)
    assert one.metrics["grad_norm"] == pytest.approx(other.metrics["grad_norm"], rel=1e-5)
    assert log_ratios(own) == pytest.approx([0.0] * len(batch), abs=1e-5)
    assert_same(values(implicit), values(explicit), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens_per_micro_batch": 30},
        {"tokens_per_micro_batch": 1},
        {"gradient_checkpointing": True},
    ],
    ids=["small", "single", "checkpointing"],
)
def test_micro_batches_and_checkpointing_change_nothing_but_rounding(
    new_policy: NewPolicy, change: dict[str, Any]
) -> None:
    whole, split = new_policy(), new_policy()
    batch = mixture(whole)
    ticks: list[int] = []
    expected = Learner(whole, UNCLIPPED, 10, 1.0, BALANCE).update(batch, 0)
    expected_ratios = log_ratios(batch)
    learner = Learner(split, UNCLIPPED.model_copy(update=change), 10, 1.0, BALANCE)
    actual = learner.update(batch, 0, lambda: ticks.append(1))
    assert len(ticks) == len(micro_batches(batch, learner.config.tokens_per_micro_batch, shared_prompts=True)) + 1
    assert_same(values(split), values(whole), atol=1e-5)
    assert log_ratios(batch) == pytest.approx(expected_ratios, abs=1e-4)
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-5, nan_ok=True)


def test_clipping_bounds_what_is_applied_and_reports_what_was_found(new_policy: NewPolicy) -> None:
    """With plain moments (β₁ = 0) Adam forgets the scale, so the gradient itself is looked at."""
    norms: list[float] = []
    for bound in (1e9, 0.5):
        policy = new_policy()
        learner = Learner(policy, CONFIG.model_copy(update={"max_grad_norm": bound}), 10, 1.0, BALANCE)
        seen: list[Tensor] = []
        learner.optimizer.register_step_pre_hook(
            lambda *_, policy=policy, seen=seen: seen.extend(p.grad.clone() for p in policy.parameters())  # type: ignore[misc]
        )
        reported = learner.update(mixture(policy), 0).metrics["grad_norm"]
        applied = math.sqrt(sum(float(g.square().sum()) for g in seen))
        assert applied == pytest.approx(min(bound, reported), rel=1e-3)
        norms.append(reported)
        assert all(parameter.grad is None for parameter in policy.parameters())
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 0.5


def test_the_scheduled_rate_is_the_one_applied(new_policy: NewPolicy) -> None:
    moved = []
    for step in (0, 3):
        policy = new_policy()
        before = values(policy)
        config = CONFIG.model_copy(update={"schedule": "linear", "weight_decay": 0.0})
        update = Learner(policy, config, 4, 1.0, BALANCE).update(mixture(policy), step)
        assert update.metrics["optim/learning_rate"] == pytest.approx(1e-3 * (1 - step / 4))
        moved.append([a - b for a, b in zip(values(policy), before, strict=True)])
    assert_same(moved[1], [difference / 4 for difference in moved[0]], atol=1e-6)


def assert_nothing_happened(learner: Learner, before: list[Tensor], state: dict[str, Any], update: Update) -> None:
    assert not update.trained
    assert_same(values(learner.policy), before)
    after = learner.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for index, moments in state["state"].items():
        for name, value in moments.items():
            assert torch.equal(after["state"][index][name], value)


def broken_loss(monkeypatch: pytest.MonkeyPatch, policy: Policy, batch: list[Completion]) -> Any:
    real = trajectory_balance.trajectory_balance

    def not_a_number(*arguments: Any) -> Any:
        loss, metrics = real(*arguments)
        return loss * math.nan, metrics | {"loss/objective": metrics["loss/objective"] * math.nan}

    monkeypatch.setattr(trajectory_balance, "trajectory_balance", not_a_number)
    return batch


def infinite_advantage(monkeypatch: pytest.MonkeyPatch, policy: Policy, batch: list[Completion]) -> Any:
    return [*batch[:-1], replace(batch[-1], advantage=math.inf)]


def anchor_not_a_number(monkeypatch: pytest.MonkeyPatch, policy: Policy, batch: list[Completion]) -> Any:
    anchor = [math.nan] * len(batch[0].token_ids)
    return [replace(batch[0], anchor_logprobs=anchor), *batch[1:]]


def gradient_alone_not_a_number(monkeypatch: pytest.MonkeyPatch, policy: Policy, batch: list[Completion]) -> Any:
    policy.parameters()[3].register_hook(lambda gradient: gradient * math.inf)
    return batch


@pytest.mark.parametrize("damage", [broken_loss, infinite_advantage, anchor_not_a_number, gradient_alone_not_a_number])
def test_a_step_that_is_not_finite_is_not_taken(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, damage: Callable[..., list[Completion]]
) -> None:
    batch = mixture(policy)
    learner = Learner(policy, CONFIG, 10, 1.0, BALANCE)
    assert learner.update(batch, 0).trained
    before, state = values(policy), deepcopy(learner.state_dict())
    with monkeypatch.context() as patched:
        damaged = damage(patched, policy, batch)
        update = learner.update(damaged, 1)
    assert log_ratios(damaged) == [0.0] * 6
    assert_nothing_happened(learner, before, state, update)
    assert all(parameter.grad is None for parameter in policy.parameters())
    policy.parameters()[3]._backward_hooks = None
    assert learner.update(batch, 1).trained


def test_an_empty_batch_is_no_step(policy: Policy) -> None:
    learner = Learner(policy, CONFIG, 10, 1.0, BALANCE)
    before = values(policy)
    nothing = learner.update([], 0)
    assert not nothing.trained
    assert all(math.isnan(value) for value in nothing.metrics.values())
    assert_same(values(policy), before)
    assert nothing.metrics.keys() == learner.update(mixture(policy), 0).metrics.keys()


@pytest.mark.parametrize("budget", [16384, 30])
def test_metrics_are_of_fresh_sequences_but_the_loss_is_of_all(policy: Policy, budget: int) -> None:
    batch = mixture(policy)
    full = [logprobs_of(policy, sequence, 1.0).detach() for sequence in batch]
    config = CONFIG.model_copy(update={"tokens_per_micro_batch": budget})
    metrics = Learner(policy, config, 10, 1.0, BALANCE).update(batch, 0).metrics
    gaps = [taken(f, s) - torch.tensor(s.anchor_logprobs, device=f.device) for f, s in zip(full, batch, strict=True)]
    fresh_gap_K = torch.cat(gaps[:4])
    entropy_K = torch.cat([-(f.exp() * f).sum(dim=-1) for f in full[:4]])
    delta_B = torch.tensor([float(gap.sum()) - s.advantage for gap, s in zip(gaps, batch, strict=True)])
    expected = {
        "loss/objective": delta_B.square().mean(),
        "objective/delta_abs": delta_B.abs().mean(),
        "kl/old": -sum(gap.sum() for gap in gaps[:4]) / 4,
        "mismatch/logprob_mean": fresh_gap_K.abs().mean(),
        "mismatch/logprob_max": fresh_gap_K.abs().max(),
        "entropy": entropy_K.mean(),
    }
    assert torch.cat(gaps[4:]).abs().max() > fresh_gap_K.abs().max()  # so that replayed ones would show
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-3), name


def test_a_batch_of_replay_alone_has_all_metrics(policy: Policy) -> None:
    update = Learner(policy, CONFIG, 10, 1.0, BALANCE).update([s for s in mixture(policy) if s.replayed], 0)
    assert update.trained
    assert math.isnan(update.metrics["kl/old"])
    assert math.isnan(update.metrics["entropy"])
    assert update.metrics["loss/objective"] > 0


def test_a_learner_restored_from_disk_goes_on_bit_for_bit(new_policy: NewPolicy, tmp_path: Path) -> None:
    policy = new_policy()
    batch = mixture(policy)
    learner = Learner(policy, CONFIG, 10, 1.0, BALANCE)
    for step in range(2):
        learner.update(batch, step)
    save_state(tmp_path, "optimizer", learner.state_dict())
    copied = new_policy()
    copied.model.load_state_dict(policy.model.state_dict())
    restored = Learner(copied, CONFIG, 10, 1.0, BALANCE)
    restored.load_state_dict([load_state(tmp_path, "optimizer")])
    for step in range(2, 4):
        one, ratios = learner.update(batch, step), log_ratios(batch)
        other = restored.update(batch, step)
        assert (one, ratios) == (other, log_ratios(batch))
    assert_same(values(copied), values(policy))
    without = new_policy()
    without.model.load_state_dict(policy.model.state_dict())
    Learner(without, CONFIG, 10, 1.0, BALANCE).update(batch, 4)
    learner.update(batch, 4)
    assert not all(torch.equal(a, b) for a, b in zip(values(without), values(policy), strict=True))


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interruption_leaves_no_trace(new_policy: NewPolicy, at: int) -> None:
    interrupted, undisturbed = new_policy(), new_policy()
    config = CONFIG.model_copy(update={"tokens_per_micro_batch": 30})
    batch = mixture(interrupted)
    learner = Learner(interrupted, config, 10, 1.0, BALANCE)
    before = values(interrupted)
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.update(batch, 0, tick)
    assert_same(values(interrupted), before)
    assert learner.state_dict()["state"] == {}
    learner.update(batch, 0)
    Learner(undisturbed, config, 10, 1.0, BALANCE).update(batch, 0)
    assert_same(values(interrupted), values(undisturbed))
    assert not any(module.training for module in interrupted.model.modules())


def test_one_mini_batch_that_is_not_finite_does_not_stop_the_others(new_policy: NewPolicy) -> None:
    broken, clean = new_policy(), new_policy()
    batch = mixture(broken)[:4]
    config = CONFIG.model_copy(update={"mini_batches": 4})
    learner = Learner(broken, config, 10, 1.0, BALANCE)
    ((first,), *_) = learner._mini_batches(4, 0)
    damaged = [replace(s, advantage=math.inf) if i == first else s for i, s in enumerate(batch)]
    update = learner.update(damaged, 0)
    assert (update.trained, update.skipped) == (3, 1)
    assert damaged[first].log_ratio == 0.0
    assert all(parameter.isfinite().all() for parameter in values(broken))
    rest = Learner(clean, config, 10, 1.0, BALANCE)
    for (i,) in list(learner._mini_batches(4, 0))[1:]:
        Learner.update(rest, [batch[i]], 0)
    assert_same(values(broken), values(clean))


def test_mini_batches_visit_everything_once_an_epoch_and_differ_between_steps(policy: Policy) -> None:
    learner = Learner(policy, CONFIG.model_copy(update={"mini_batches": 3, "epochs": 2}), 10, 1.0, BALANCE)
    parts = list(learner._mini_batches(8, step=5))
    assert [len(part) for part in parts] == [3, 3, 2] * 2
    for epoch in (parts[:3], parts[3:]):
        assert sorted(i for part in epoch for i in part) == list(range(8))
    assert parts[:3] != parts[3:]
    assert parts == list(learner._mini_batches(8, step=5))
    assert parts != list(learner._mini_batches(8, step=6))


def test_the_current_policy_as_anchor_is_that_of_the_steps_start(new_policy: NewPolicy) -> None:
    """With several optimiser steps per batch, μ is the policy before the first of them."""
    implicit, explicit = new_policy(), new_policy()
    batch = [replace(s, anchor_logprobs=None) for s in mixture(implicit)]
    own = [replace(s, anchor_logprobs=taken(logprobs_of(explicit, s, 1.0), s).tolist()) for s in batch]
    config = CONFIG.model_copy(update={"mini_batches": 2, "epochs": 2})
    one = Learner(implicit, config, 10, 1.0, BALANCE).update(batch, 0)
    other = Learner(explicit, config, 10, 1.0, BALANCE).update(own, 0)
    assert one.metrics["loss/objective"] == pytest.approx(other.metrics["loss/objective"], rel=1e-3)
    assert log_ratios(batch) == pytest.approx(log_ratios(own), abs=1e-3)
    assert max(map(abs, log_ratios(batch))) > 0.01


def test_the_gap_to_the_sampler_is_measured_whatever_the_anchor(policy: Policy) -> None:
    batch = [s for s in mixture(policy) if not s.replayed]
    moved = [replace(s, anchor_logprobs=None) for s in batch]
    metrics = Learner(policy, CONFIG, 10, 1.0, BALANCE).accumulate_gradient(batch)
    with_own_anchor = Learner(policy, CONFIG, 10, 1.0, BALANCE).accumulate_gradient(moved)
    assert metrics["mismatch/logprob_max"] > 0.1
    for name in ("mismatch/logprob_max", "mismatch/logprob_mean"):
        assert with_own_anchor[name] == pytest.approx(metrics[name])
    assert with_own_anchor["kl/old"] == pytest.approx(0.0, abs=1e-4)
