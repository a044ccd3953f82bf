"""log Z in closed form: Bayesian linear regression against numpy's, and what must hold for any data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pacedrl.method import ClosedFormPartition
from pacedrl.method.closed_form import NOISE, RIDGES

BETA = 0.05
PROMPTS = 40


def embeddings(count: int = PROMPTS, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def made(**options: object) -> ClosedFormPartition:
    return ClosedFormPartition(embeddings(), BETA, **{"features": 32, **options})  # type: ignore[arg-type]


def observed(partition: ClosedFormPartition, steps: int, seed: int = 0) -> list[tuple[np.ndarray, torch.Tensor]]:
    """Fit random rewards of 5 prompts × 4 completions per step; return the rows and rewards of each step."""
    rng = np.random.default_rng(seed)
    shown = []
    for _ in range(steps):
        rows = rng.permutation(PROMPTS)[:5].repeat(4)
        reward = torch.from_numpy(rng.integers(0, 2, 20).astype(np.float32))
        partition.fit(rows, reward, torch.zeros(20))
        shown.append((rows, reward))
    return shown


def by_hand(partition: ClosedFormPartition, shown: list[tuple[np.ndarray, torch.Tensor]]) -> tuple[np.ndarray, ...]:
    """Return means and variances of all prompts by weighted least squares on all groups, with numpy's solver."""
    phi_NF = partition.features_NF.double().numpy()
    rows = np.concatenate([rows[::4] for rows, _ in shown])
    target = np.concatenate([reward.view(5, 4).mean(dim=1).double().numpy() for _, reward in shown])
    weight = np.repeat([partition.discount ** (len(shown) - 1 - step) for step in range(len(shown))], 5)
    gram = phi_NF[rows].T * weight @ phi_NF[rows] + partition.ridge * np.eye(phi_NF.shape[1])
    solution = np.linalg.solve(gram, phi_NF[rows].T @ (weight * (target - partition.prior_accuracy)))
    residual = target - partition.prior_accuracy - phi_NF[rows] @ solution
    noise = (NOISE + weight @ residual**2 + partition.ridge * solution @ solution) / (1 + weight.sum())
    variance = noise * np.einsum("nf,fg,ng->n", phi_NF, np.linalg.inv(gram), phi_NF)
    return partition.prior_accuracy + phi_NF @ solution, variance, np.array(noise)


def test_every_prompt_starts_at_the_prior_with_an_equal_variance() -> None:
    partition = made(prior_accuracy=0.3)
    assert partition.accuracy() == pytest.approx(np.full(PROMPTS, 0.3))
    assert partition.unseen_variance == NOISE
    norm_N = partition.features_NF.float().square().sum(dim=1).numpy()
    assert partition.variance() == pytest.approx(NOISE / partition.ridge * norm_N, rel=1e-4)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_estimates_and_variances_are_those_of_weighted_least_squares(discount: float) -> None:
    partition = made(discount=discount, prior_accuracy=0.4)
    mean_N, variance_N, noise = by_hand(partition, observed(partition, 6))
    assert partition.accuracy() == pytest.approx(mean_N, abs=1e-5)
    assert partition.noise == pytest.approx(float(noise), rel=1e-6)
    assert partition.variance() == pytest.approx(variance_N, rel=1e-3)


def test_the_ridge_maximises_the_marginal_likelihood() -> None:
    """The evidence of a Gaussian process, t ~ N(m, σ²(I + φφᵀ/η)), with σ² integrated out, and the prior of η."""
    partition = made(discount=1.0)
    shown = observed(partition, 8)
    phi = partition.features_NF.double().numpy()[np.concatenate([rows[::4] for rows, _ in shown])]
    target = np.concatenate([reward.view(5, 4).mean(dim=1).double().numpy() for _, reward in shown]) - 0.5
    scores = []
    for ridge in RIDGES.tolist():
        covariance = np.eye(len(phi)) + phi @ phi.T / ridge
        square = NOISE + target @ np.linalg.solve(covariance, target)
        log_determinant = np.linalg.slogdet(covariance)[1]
        scores.append(log_determinant + (len(phi) + 1) * np.log(square) + np.log(ridge) ** 2 / 16)
    assert partition.ridge == RIDGES[int(np.argmin(scores))]


def test_the_target_is_the_reward_less_beta_log_ratio() -> None:
    one, two = made(), made()
    rows, log_ratio = np.arange(8), torch.linspace(-2, 2, 8)
    one.fit(rows, torch.ones(8), log_ratio)
    two.fit(rows, torch.ones(8) - BETA * log_ratio, torch.zeros(8))
    assert one.accuracy() == pytest.approx(two.accuracy(), abs=1e-6)


def test_the_loss_before_a_fit_is_that_of_the_completions() -> None:
    partition = made(prior_accuracy=0.5)
    assert partition.fit(np.zeros(4, dtype=int), torch.tensor([1.0, 0.0, 0.0, 0.75]), torch.zeros(4)) == pytest.approx(
        (0.25 * 3 + 0.0625) / 4
    )


def test_order_of_the_completions_does_not_matter() -> None:
    one, two = made(), made()
    rows, reward = np.repeat(np.arange(6), 4), torch.rand(24, generator=torch.Generator().manual_seed(0))
    order = np.random.default_rng(0).permutation(24)
    one.fit(rows, reward, torch.zeros(24))
    two.fit(rows[order], reward[torch.from_numpy(order)], torch.zeros(24))
    assert one.accuracy() == pytest.approx(two.accuracy(), abs=1e-7)


def test_draws_have_the_mean_and_the_covariance_of_the_posterior() -> None:
    partition = made()
    observed(partition, 6)
    rng = np.random.default_rng(0)
    draws = np.stack([partition.draw(rng) for _ in range(4000)])
    assert draws.mean(axis=0) == pytest.approx(partition.accuracy(), abs=0.02)
    assert draws.var(axis=0) == pytest.approx(partition.variance(), rel=0.15)
    # One draw moves similar prompts together: the covariance is φᵀ(S + ηI)⁻¹φ'·σ², not diagonal.
    root = partition.root_FF.double()
    phi = partition.features_NF.double() @ root
    assert np.cov(draws.T)[:5, :5] == pytest.approx((phi[:5] @ phi[:5].T).numpy(), abs=0.01)


def test_given_rows_are_those_of_all() -> None:
    partition = made()
    observed(partition, 3)
    rows = np.array([7, 2, 2])
    assert partition.accuracy(rows) == pytest.approx(partition.accuracy()[rows], abs=1e-6)
    assert partition.variance(rows) == pytest.approx(partition.variance()[rows], rel=1e-5)
    assert partition.draw(np.random.default_rng(1), rows) == pytest.approx(
        partition.draw(np.random.default_rng(1))[rows], abs=1e-6
    )
    assert partition.accuracy_of(embeddings()[rows]) == pytest.approx(partition.accuracy(rows), abs=1e-3)


def test_observed_prompts_become_more_certain_than_others() -> None:
    partition = ClosedFormPartition(embeddings(), BETA, length_scale=0.3)
    rows = np.arange(10).repeat(8)
    for _ in range(5):
        partition.fit(rows, torch.from_numpy(rows % 2).float(), torch.zeros(80))
    variance = partition.variance()
    assert variance[:10].max() < 0.5 * variance[10:].min()


def test_what_features_cannot_see_is_told_apart_from_sampling_noise() -> None:
    """Prompts of equal embeddings and different accuracies: their variance is unseen, that of the rewards is not."""
    rng = np.random.default_rng(0)
    spread, sure = (ClosedFormPartition(torch.zeros(400, 3), BETA, discount=1.0) for _ in range(2))
    rows = np.arange(400).repeat(8)
    accuracy = rng.choice([0.2, 0.8], 400)
    for partition, p in ((spread, accuracy), (sure, np.full(400, 0.5))):
        partition.fit(rows, torch.from_numpy((rng.random(3200) < p.repeat(8)).astype(np.float32)), torch.zeros(3200))
    assert spread.unseen_variance == pytest.approx(0.09, abs=0.015)
    assert sure.unseen_variance < 0.01


def test_older_results_are_forgotten() -> None:
    keeping, forgetting = made(discount=1.0), made(discount=0.5)
    rows = np.arange(PROMPTS).repeat(4)
    for partition in (keeping, forgetting):
        for reward in [0.0] * 10 + [1.0] * 10:
            partition.fit(rows, torch.full((160,), reward), torch.zeros(160))
    assert keeping.accuracy().mean() == pytest.approx(0.5, abs=0.02)
    assert forgetting.accuracy().mean() > 0.95


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([0.5, 0.98, 1.0]),
    st.lists(st.lists(st.tuples(st.integers(0, 11), st.floats(0, 1)), min_size=1, max_size=9), max_size=6),
)
def test_nothing_is_ever_nan(prompts: int, width: int, discount: float, steps: list[list[tuple[int, float]]]) -> None:
    """Few prompts, rank-deficient embeddings, single and constant rewards."""
    x = embeddings(prompts, width)
    x[:, : width // 2] = 1.0
    partition = ClosedFormPartition(x, BETA, discount=discount, features=16)
    for step in steps:
        rows = np.array([row % prompts for row, _ in step])
        loss = partition.fit(rows, torch.tensor([reward for _, reward in step]), torch.zeros(len(step)))
        assert np.isfinite(loss)
    assert np.isfinite(partition.accuracy()).all()
    assert (np.isfinite(partition.variance()) & (partition.variance() >= 0)).all()
    assert 0 <= partition.unseen_variance < 1
    assert np.isfinite(partition.draw(np.random.default_rng(0))).all()


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_constant_rewards_are_learned_and_leave_some_variance(reward: float) -> None:
    partition = made()
    for _ in range(200):
        partition.fit(np.arange(PROMPTS).repeat(2), torch.full((80,), reward), torch.zeros(80))
    assert partition.accuracy() == pytest.approx(np.full(PROMPTS, reward), abs=0.01)
    assert (partition.variance() > 0).all()


def test_a_million_steps_of_forgetting_return_to_the_prior() -> None:
    partition = made(discount=0.98)
    observed(partition, 3)
    partition.sums = {name: 0.98**1_000_000 * value for name, value in partition.sums.items()}
    partition._solve()
    assert partition.accuracy() == pytest.approx(np.full(PROMPTS, 0.5))
    observed(partition, 3)
    assert np.isfinite(partition.accuracy()).all()


def test_the_state_continues_bit_for_bit() -> None:
    first, second = made(), made()
    observed(first, 4)
    second.load_state_dict(first.state_dict())
    assert np.array_equal(first.accuracy(), second.accuracy())
    for partition in (first, second):
        observed(partition, 2, seed=1)
    assert np.array_equal(first.accuracy(), second.accuracy())
    assert np.array_equal(first.variance(), second.variance())


def test_the_state_keeps_the_features_when_prompts_are_added() -> None:
    first = made()
    observed(first, 4)
    grown = torch.cat([embeddings(), 3 + embeddings(30, seed=1)])
    second = ClosedFormPartition(grown, BETA, features=32)
    second.load_state_dict(first.state_dict())
    assert second.accuracy()[:PROMPTS] == pytest.approx(first.accuracy(), abs=1e-6)
    assert len(second.accuracy()) == PROMPTS + 30


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3,), {}, "shape"),
        ((0, 4), {}, "shape"),
        ((3, 4), {"beta": 0.0}, "beta"),
        ((3, 4), {"discount": 0.0}, r"discount must lie in \(0, 1\]"),
        ((3, 4), {"discount": 1.1}, r"discount must lie in \(0, 1\]"),
    ],
)
def test_refuses_what_it_cannot_use(shape: tuple[int, ...], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClosedFormPartition(torch.zeros(shape), **options)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_the_unseen_variance_is_the_same_in_whatever_parts_a_group_comes(parts: int) -> None:
    """Accuracies of 0.5 leave nothing unseen; all noise is that of sampling, even if no group shows any."""
    partition = ClosedFormPartition(embeddings(400), BETA, features=32, discount=1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows = rng.permutation(400)[:40].repeat(8 // parts)
        for _ in range(parts):
            reward = torch.from_numpy(rng.integers(0, 2, len(rows)).astype(np.float32))
            partition.fit(rows, reward, torch.zeros(len(rows)))
    assert partition.unseen_variance < 0.01
