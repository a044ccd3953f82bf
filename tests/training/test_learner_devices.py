"""The whole update and its checkpoints where the policy is on another device than the CPU, with values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, Lists, claim
from elsewhere import values as held
from test_learner import BALANCE, CONFIG, EPS, log_ratios, mixture
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from pacedrl.config import ModelConfig, OptimizerConfig, parse_config
from pacedrl.method import DifficultyScheduler, LogPartition, MlpPartition, Rollouts
from pacedrl.policy import logprobs
from pacedrl.policy.policy import Policy
from pacedrl.training.checkpoint import load_checkpoint_state, load_optimizer_states, save_checkpoint
from pacedrl.training.learner import Learner, Loss
from pacedrl.training.objectives import build_objective
from pacedrl.types import Completion

OBJECTIVES: dict[str, dict[str, Any]] = {
    "trajectory balance": {"name": "trajectory_balance"},
    "GRPO": {"name": "grpo", "kl_coefficient": 0.1},
    "GSPO": {"name": "grpo", "ratio": "sequence"},
    "FlowRL": {"name": "flowrl"},
    "GFlowRL": {"name": "gflowrl"},
}


@pytest.fixture(autouse=True)
def elsewhere_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch and the head treat `ELSEWHERE` like a device that they know."""
    fused = torch_optimizer._get_fused_kernels_supported_devices()
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused, ELSEWHERE.type])
    monkeypatch.setitem(logprobs.CHUNK_ELEMENTS, ELSEWHERE.type, 2**11)


@contextmanager
def elsewhere() -> Iterator[None]:
    with Elsewhere(), Lists():
        yield


def moved(policy: Policy) -> Policy:
    """Return a copy of the policy on `ELSEWHERE`, in float32."""

    def claimed(tensor: Tensor) -> Tensor:
        there = claim(tensor.detach().clone())
        return torch.nn.Parameter(there) if isinstance(tensor, torch.nn.Parameter) else there

    _ = policy.packing  # chosen by its device
    memo: dict[int, Any] = {id(t): claimed(t) for t in [*policy.model.parameters(), *policy.model.buffers()]}
    copy = deepcopy(policy, memo)
    copy.device, copy.autocast = ELSEWHERE, nullcontext  # type: ignore[method-assign,assignment]
    return copy


def learner(policy: Policy, config: OptimizerConfig = CONFIG, loss: Loss = BALANCE) -> Learner:
    made = Learner(policy, config, 10, 1.0, loss)
    for group in made.optimizer.param_groups:
        group["eps"] = EPS
    return made


def assert_equal(there: Policy, here: Policy) -> None:
    """Compare weights. Attention is computed by other operations there, so they are rounded differently."""
    for one, other in zip(there.model.parameters(), here.model.parameters(), strict=True):
        torch.testing.assert_close(held(one.detach()), other.detach(), rtol=0, atol=2e-5)


def unanchored(policy: Policy) -> list[Completion]:
    """Return completions of which some take μ from the policy before the update; all have a reference."""
    batch = mixture(policy)
    for completion in batch:
        completion.reference_logprobs = [logprob - 0.1 for logprob in completion.logprobs]
    batch[1].anchor_logprobs = None
    return batch


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_update_stays_on_the_device_of_the_policy(policy: Policy, objective: dict[str, Any]) -> None:
    """With several optimiser steps, activation checkpointing, and a head in several chunks."""
    settings = {"mini_batches": 2, "epochs": 2, "gradient_checkpointing": True, "tokens_per_micro_batch": 40}
    config = CONFIG.model_copy(update=settings)
    loss = build_objective(
        parse_config({"objective": objective, "estimator": {"name": "counts"}, "replay": {"enabled": False}})
    ).loss
    there, batch, other = moved(policy), unanchored(policy), unanchored(policy)
    expected = learner(policy, config, loss).update(batch, 0)
    with elsewhere():
        actual = learner(there, config, loss).update(other, 0)
    assert actual.trained == expected.trained == 2 * len(batch)
    assert actual.metrics == pytest.approx(expected.metrics, rel=1e-3, abs=1e-4, nan_ok=True)
    assert log_ratios(other) == pytest.approx(log_ratios(batch), abs=1e-3)
    assert_equal(there, policy)


KEYS = list("abcd")
ROLLOUTS = Rollouts(KEYS, np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.1, 0.2, 0.3, 0.4]))


def scheduler() -> DifficultyScheduler:
    """A scheduler whose log Z is fitted on `ELSEWHERE`. Call it within `elsewhere`."""
    torch.manual_seed(0)
    embeddings_NH = torch.randn(len(KEYS), 8)
    network = LogPartition(embeddings_NH, beta=0.05, dropout=0.0).to(ELSEWHERE)
    return DifficultyScheduler(KEYS, embeddings_NH, partition=MlpPartition(network, embeddings_NH))


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # which here is no no-op
def test_a_checkpoint_of_that_device_is_continued_there_and_on_the_cpu(policy: Policy, tmp_path: Path) -> None:
    """It holds policy, optimiser and scheduler, and the next update is what it would have been without it."""
    there, batch = moved(policy), mixture(policy)
    with elsewhere():
        trained, watched = learner(there), scheduler()
        trained.update(batch, 0)
        watched.observe(ROLLOUTS)
        state = {"optimizer": trained.state_dict(), "scheduler": watched.state_dict(), "trainer": {}}
        folder = save_checkpoint(tmp_path, 1, there, state, keep=1)
    loaded = Policy.load(ModelConfig(), torch.device("cpu"), folder)
    for one, other in zip(there.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(held(one.detach()), other.detach(), rtol=0, atol=0)
    again = moved(loaded)
    with elsewhere():
        resumed, seen = learner(again), scheduler()
        resumed.load_state_dict(load_optimizer_states(folder))
        assert not np.array_equal(seen.accuracy_estimates(), watched.accuracy_estimates())
        seen.load_state_dict(load_checkpoint_state(folder, "scheduler"))
        assert np.array_equal(seen.accuracy_estimates(), watched.accuracy_estimates())
        assert seen.observe(ROLLOUTS) == pytest.approx(watched.observe(ROLLOUTS), abs=0, nan_ok=True)
        trained.update(batch, 1)
        resumed.update(batch, 1)
    for one, other in zip(there.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(held(one.detach()), held(other.detach()), rtol=0, atol=0)
    here = learner(loaded)
    here.load_state_dict(load_optimizer_states(folder))
    here.update(batch, 1)
    assert_equal(there, loaded)


def leave_anchors(learner: Learner) -> None:
    padded = learner._padded
    learner._padded = lambda *arguments: padded(*arguments).cpu()  # type: ignore[method-assign]


def leave_moments(learner: Learner) -> None:
    for state in learner.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].cpu()


def leave_weight(learner: Learner) -> None:
    learner.policy.decoder.norm.weight = torch.nn.Parameter(held(learner.policy.decoder.norm.weight.detach()))


@pytest.mark.parametrize("leave", [leave_anchors, leave_moments, leave_weight])
def test_a_tensor_left_on_the_host_is_noticed(policy: Policy, leave: Callable[[Learner], None]) -> None:
    """Without this the tests above could not fail."""
    there, batch = moved(policy), mixture(policy)
    with elsewhere():
        trained = learner(there)
        trained.update(batch, 0)
        leave(trained)
        with pytest.raises(RuntimeError, match="device"):
            trained.update(batch, 1)
