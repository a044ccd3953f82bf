"""Every public function and class of `pacedrl.method` that takes tensors takes them from any device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from elsewhere import CLAIMED, ELSEWHERE, Elsewhere, claim, values
from torch import Tensor

from pacedrl import method
from pacedrl.method import ClosedFormPartition, DifficultyScheduler, LogPartition, MlpPartition, Rollouts

B, T = 6, 3
GENERATOR = torch.Generator().manual_seed(0)
LOGPROBS_BT, ANCHOR_BT, REFERENCE_BT = (-torch.rand(B, T, generator=GENERATOR) for _ in range(3))
MASK_BT = torch.arange(T) < torch.tensor([3, 2, 1, 3, 3, 2])[:, None]
REWARD_B = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.5, 1.0])
GROUP_B = torch.tensor([0, 0, 2, 2, 2, 5])
NUMBER_B = torch.rand(B, generator=GENERATOR)
EMBEDDINGS_NH = torch.randn(8, 4, generator=GENERATOR)
CASES: dict[str, tuple[Any, ...]] = {
    "trajectory_balance_advantage": (REWARD_B, NUMBER_B, 0.05),
    "group_relative_advantage": (REWARD_B, GROUP_B),
    "group_mean_log_z": (REWARD_B, GROUP_B, 0.05, NUMBER_B),
    "blended_baseline": (REWARD_B, GROUP_B, NUMBER_B, NUMBER_B),
    "trajectory_balance": (LOGPROBS_BT, ANCHOR_BT, MASK_BT, NUMBER_B),
    "clipped_policy_gradient": (LOGPROBS_BT, ANCHOR_BT, MASK_BT, NUMBER_B),
    "flow_balance": (LOGPROBS_BT, ANCHOR_BT, REFERENCE_BT, MASK_BT, NUMBER_B),
    "group_flow_balance": (LOGPROBS_BT, ANCHOR_BT, MASK_BT, NUMBER_B),
    "sequence_log_ratio": (LOGPROBS_BT, ANCHOR_BT, MASK_BT),
    "k3_divergence": (LOGPROBS_BT, ANCHOR_BT, MASK_BT),
}
"""Arguments of every public function that takes tensors."""
OPTIONS: dict[str, dict[str, Any]] = {
    "clipped_policy_gradient": {
        "ratio": "sequence",
        "kl_coefficient": 0.1,
        "reference_logprobs_BT": REFERENCE_BT,
        "sampler_logprobs_BT": REFERENCE_BT,
    },
    "group_flow_balance": {"weight_cap": 2.0, "gap_low": 0.2, "gap_high": 0.2},
}
ROUNDING = {"rtol": 0.0, "atol": 0.0} if CLAIMED else {"rtol": 1e-5, "atol": 1e-6}
"""A GPU adds and takes exponentials in its own way."""
TESTED_BELOW = {"ClosedFormPartition", "DifficultyScheduler", "LogPartition", "MlpPartition"}


def takes_tensors(thing: Any) -> bool:
    if inspect.isclass(thing):
        members = [member for name, member in vars(thing).items() if inspect.isfunction(member) and name[:2] != "_"]
        return any(map(takes_tensors, [thing.__init__, *members]))
    parameters = inspect.signature(thing).parameters.values()
    return any("Tensor" in str(parameter.annotation) for parameter in parameters)


def test_every_public_name_that_takes_tensors_is_tried_here() -> None:
    assert {name for name in method.__all__ if takes_tensors(getattr(method, name))} == CASES.keys() | TESTED_BELOW


def moved(value: Any) -> Any:
    return claim(value.clone()) if isinstance(value, Tensor) else value


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [result[0], *result[1].values()]


@pytest.mark.parametrize("name", CASES)
def test_functions_compute_where_their_tensors_are(name: str) -> None:
    function, options = getattr(method, name), OPTIONS.get(name, {})
    expected = flat(function(*CASES[name], **options))
    with Elsewhere():
        actual = flat(function(*map(moved, CASES[name]), **{key: moved(value) for key, value in options.items()}))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(values(one), other, **ROUNDING)


@pytest.mark.parametrize("name", [name for name, (first, *_) in CASES.items() if first is LOGPROBS_BT])
def test_gradients_stay_where_the_tensors_are(name: str) -> None:
    def gradient(place: Callable[[Any], Any]) -> Tensor:
        first, *others = map(place, CASES[name])
        first.requires_grad_()
        options = {key: place(value) for key, value in OPTIONS.get(name, {}).items()}
        result = flat(getattr(method, name)(first, *others, **options))[0].sum()
        (found,) = torch.autograd.grad(result, [first])
        return found

    expected = gradient(lambda value: value.clone() if isinstance(value, Tensor) else value)
    with Elsewhere():
        actual = gradient(moved)
    torch.testing.assert_close(values(actual), expected, **ROUNDING)


@pytest.mark.skipif(not CLAIMED, reason="on a GPU torch notices it")
@pytest.mark.parametrize("name", CASES)
def test_a_tensor_of_another_device_is_noticed(name: str) -> None:
    """Without this the tests above could not fail."""
    first, *others = CASES[name]
    options = OPTIONS.get(name, {})
    with Elsewhere(), pytest.raises(RuntimeError, match="expected all tensors on one device"):
        getattr(method, name)(moved(first), *others, **options)


def mlp(place: Callable[[Any], Any], device: torch.device) -> MlpPartition:
    torch.manual_seed(0)
    embeddings_NH = place(EMBEDDINGS_NH)
    network = LogPartition(EMBEDDINGS_NH, beta=0.05, dropout=0.0)
    torch.nn.init.ones_(network.layers[-1].weight)  # type: ignore[arg-type]
    return MlpPartition(network.to(device), embeddings_NH)


def closed(place: Callable[[Any], Any], device: torch.device) -> ClosedFormPartition:
    return ClosedFormPartition(place(EMBEDDINGS_NH), features=16, device=device)


@pytest.mark.parametrize("kept", [moved, lambda tensor: tensor], ids=["embeddings there", "embeddings on the CPU"])
@pytest.mark.parametrize("build", [mlp, closed])
def test_partitions_compute_on_their_own_device(build: Any, kept: Any) -> None:
    rows_B = np.array([0, 1, 1, 2, 3, 7])

    def run(place: Any, batch: Any, device: torch.device) -> list[Any]:
        partition = build(place, device)
        losses = [partition.fit(rows_B, batch(REWARD_B), batch(NUMBER_B), 1, batch(NUMBER_B + 1.0)) for _ in range(2)]
        state = partition.state_dict()
        partition.load_state_dict(state)
        return [losses, partition.accuracy(), partition.accuracy(rows_B), partition.accuracy_of(place(EMBEDDINGS_NH))]

    expected = run(lambda tensor: tensor, lambda tensor: tensor, torch.device("cpu"))
    for batch in (moved, lambda tensor: tensor):  # a trainer may hold its rewards on either device
        with Elsewhere():
            actual = run(kept, batch, ELSEWHERE)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5 if CLAIMED else 1e-3)


@pytest.mark.parametrize("partition", ["mlp", "closed"])
def test_the_scheduler_takes_embeddings_of_any_device(partition: str) -> None:
    keys = [str(i) for i in range(len(EMBEDDINGS_NH))]

    def run(place: Any, device: torch.device) -> Any:
        built = (mlp if partition == "mlp" else closed)(place, device)
        scheduler = DifficultyScheduler(keys, place(EMBEDDINGS_NH), partition=built)
        scheduler.observe(Rollouts(keys[:B], REWARD_B.numpy(), NUMBER_B.numpy()))
        return scheduler.advantage(keys[:B], REWARD_B.numpy())

    expected = run(lambda tensor: tensor, torch.device("cpu"))
    with Elsewhere():
        torch.testing.assert_close(run(moved, ELSEWHERE), expected, **({} if CLAIMED else {"rtol": 1e-3, "atol": 1e-4}))
