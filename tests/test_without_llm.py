"""The example without a language model enumerates right values, and what it learns approaches them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pacedrl.method import calibration_metrics

PROMPTS, STEPS = 192, 80


def load_example() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "without_llm.py"
    spec = importlib.util.spec_from_file_location("without_llm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_example()


def policy(seed: int = 0, scale: float = 1.0) -> torch.nn.Module:
    """Return a new policy; ``scale`` multiplies its weights to make it far from uniform."""
    torch.manual_seed(seed)
    made: torch.nn.Module = example.Policy()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
    return made


def rewards(x_NF: torch.Tensor) -> torch.Tensor:
    return example.reward(x_NF[:, None], example.EVERY_ST).double()


@pytest.fixture(name="x_NF", scope="module")
def prompts() -> torch.Tensor:
    return example.make_prompts(PROMPTS, seed=0)


def trained(
    x_NF: torch.Tensor, steps: int, seed: int = 0, made: torch.nn.Module | None = None, **options: object
) -> tuple[NDArray, NDArray]:
    """Return the enumerated accuracy and its estimate β·log Z, both [N]."""
    made = policy() if made is None else made
    _, scheduler = example.train(made, x_NF, steps, seed, **options)
    return made.enumerated(x_NF)[1].numpy(), scheduler.accuracy_estimates()


@pytest.fixture(scope="module", params=["nearest", "nearest, 1/4 explored"])
def paced(request: pytest.FixtureRequest, x_NF: torch.Tensor) -> tuple[NDArray, NDArray]:
    return trained(x_NF, STEPS, **example.SELECTIONS[request.param])


def test_the_reward_is_that_of_the_task_as_told(x_NF: torch.Tensor) -> None:
    for prompt, reward_S in zip(x_NF[:16].int().tolist(), rewards(x_NF[:16]).tolist(), strict=True):
        weights, target, tolerance = prompt[:8], prompt[8], prompt[9]
        for y, reward in zip(example.EVERY_ST.int().tolist(), reward_S, strict=True):
            total = sum(weight for weight, bit in zip(weights, y, strict=True) if bit)
            assert reward == (abs(total - target) <= tolerance)


def test_every_prompt_can_be_solved_and_they_reach_from_rare_to_common(x_NF: torch.Tensor) -> None:
    _, p_N = policy().enumerated(x_NF)
    assert rewards(x_NF).sum(1).min() >= 1
    assert torch.quantile(p_N, 0.1) < 0.05
    assert torch.quantile(p_N, 0.9) > 0.6


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_enumerated_probabilities_sum_to_one(x_NF: torch.Tensor, scale: float) -> None:
    log_pi_NS, p_N = policy(scale=scale).enumerated(x_NF)
    assert len({tuple(y) for y in example.EVERY_ST.tolist()}) == 256
    torch.testing.assert_close(log_pi_NS.exp().sum(1), torch.ones(PROMPTS).double(), atol=1e-5, rtol=0)
    assert (p_N > 0).all()
    assert (p_N < 1).all()


def test_samples_follow_the_enumerated_probabilities(x_NF: torch.Tensor) -> None:
    made, draws = policy(scale=3.0), 8_000
    pi_S = made.enumerated(x_NF[:1])[0][0].exp().numpy()
    y_BT = made.sample(x_NF[:1].expand(draws, -1))
    index_B = (y_BT @ 2.0 ** torch.arange(7, -1, -1)).int().numpy()  # rows of EVERY_ST: binary numbers
    counts_S = np.bincount(index_B, minlength=256)
    common = pi_S * draws > 5
    assert pi_S.max() > 3 / 256  # else uniform samples would do
    chi_squared = (np.square(counts_S - pi_S * draws) / (pi_S * draws))[common].sum()
    assert chi_squared < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_best_intercept_is_accuracy_over_beta_plus_divergence(x_NF: torch.Tensor) -> None:
    (log_old_NS, p_old_N), (log_new_NS, _) = policy(0, 3.0).enumerated(x_NF), policy(1, 3.0).enumerated(x_NF)
    best_N = example.best_intercept(log_old_NS, log_new_NS, rewards(x_NF))
    kl_N = torch.nn.functional.kl_div(log_new_NS, log_old_NS, reduction="none", log_target=True).sum(1)
    assert kl_N.mean() > 0.1
    # The float32 policy's probabilities sum to 1 only nearly, which the theorem takes for granted.
    torch.testing.assert_close(best_N, p_old_N / example.BETA + kl_N, rtol=1e-5, atol=1e-5)


def test_log_z_against_a_frozen_reference(x_NF: torch.Tensor) -> None:
    beta, reward_NS = example.FROZEN_BETA, rewards(x_NF)
    log_mu_NS, p_N = policy().enumerated(x_NF)
    enumerated_N = beta * torch.logsumexp(log_mu_NS + reward_NS / beta, dim=1)
    closed_N = beta * torch.log(1 - p_N + p_N * np.exp(1 / beta))
    torch.testing.assert_close(enumerated_N, closed_N, atol=1e-6, rtol=0)

    fitted_N = example.fit_to_frozen(log_mu_NS, x_NF, reward_NS)
    assert (fitted_N - enumerated_N).abs().mean() < 0.005
    assert (fitted_N - enumerated_N).abs().max() < 0.02
    assert (fitted_N - p_N).abs().mean() > 0.1  # p/β, which holds against π_old, does not against a frozen reference


def test_log_z_knows_the_accuracy(paced: tuple[NDArray, NDArray]) -> None:
    p_N, estimate_N = paced
    learned = calibration_metrics(estimate_N, p_N)
    assert learned["accuracy/spearman"] > 0.5
    assert learned["accuracy/mae"] < 0.5 * np.abs(p_N - 0.5).mean()  # ½ is where log Z started


def test_training_makes_the_policy_right_more_often(paced: tuple[NDArray, NDArray], x_NF: torch.Tensor) -> None:
    assert paced[0].mean() > policy().enumerated(x_NF)[1].mean() + 0.3


def test_the_same_seed_gives_the_same_run(x_NF: torch.Tensor) -> None:
    # Make all policies first, because making one seeds torch, which would hide that a run does not seed itself.
    first, again, other = (trained(x_NF, 5, seed, made) for seed, made in [(s, policy()) for s in (3, 3, 4)])
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1], other[1])


def test_the_script_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    example.main(steps=2, seed=0)
    printed = capsys.readouterr().out
    for name in example.SELECTIONS:
        rows = {group: re.search(rf"^{name}: {group} +(\d+)", printed, re.MULTILINE) for group in ("all", "held out")}
        assert {group: row and row[1] for group, row in rows.items()} == {"all": "512", "held out": "128"}
    fitted, instead = re.search(r"fitted ([\d.]+), p instead ([\d.]+)", printed).groups()
    assert float(fitted) < 0.01 < 0.1 < float(instead)
