"""log Z starts at the prior, is fitted, and shares no gradients with the policy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pacedrl.method import LogPartition, MlpPartition, partition

BETA = 0.05
ROWS = np.arange(12)


def embeddings(count: int = 12, features: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prior", [0.0, 0.3, 1.0])
def test_every_prompt_starts_at_the_prior(prior: float) -> None:
    partition = LogPartition(embeddings(), BETA, prior_accuracy=prior).eval()
    assert torch.allclose(partition.accuracy(embeddings()), torch.tensor(prior))
    assert torch.allclose(partition(embeddings()), torch.tensor(prior / BETA))


def test_has_three_linear_layers_with_gelu_norm_and_dropout() -> None:
    kinds = [type(layer).__name__ for layer in LogPartition(embeddings(), BETA).layers]
    assert kinds == [*(["Linear", "GELU", "LayerNorm", "Dropout"] * 2), "Linear"]


def test_a_common_offset_and_scale_of_the_embeddings_change_nothing() -> None:
    torch.manual_seed(0)
    plain = LogPartition(embeddings(), BETA)
    shifted = LogPartition(embeddings() * 100 + 1e3, BETA)
    shifted.layers.load_state_dict(plain.layers.state_dict())
    torch.nn.init.normal_(plain.layers[-1].weight)
    shifted.layers[-1].weight.data.copy_(plain.layers[-1].weight.data)
    assert torch.allclose(plain.eval()(embeddings()), shifted.eval()(embeddings() * 100 + 1e3), atol=1e-2)


def test_a_constant_feature_does_not_divide_by_zero() -> None:
    constant = torch.ones(5, 3)
    assert LogPartition(constant, BETA).eval()(constant).isfinite().all()


def test_fitting_converges_to_reward_less_beta_log_ratio() -> None:
    torch.manual_seed(0)
    x = embeddings(4)
    learner = MlpPartition(LogPartition(x, BETA, dropout=0.0), x, learning_rate=5e-3, fit_steps=300)
    reward, log_ratio = torch.tensor([0.0, 1.0, 1.0, 0.5]), torch.tensor([0.0, 0.0, 2.0, -1.0])
    first = learner.fit(ROWS[:4], reward, log_ratio, seed=0)
    expected = reward - BETA * log_ratio
    assert first == pytest.approx((0.5 - expected).square().mean().item(), rel=1e-5)
    assert learner.accuracy() == pytest.approx(expected.numpy(), abs=0.01)


@pytest.mark.parametrize(("weights", "mean"), [(None, 1 / 3), ([0.25] * 3, 1 / 3), ([1.0, 0.5, 0.0], 2 / 3)])
def test_fitting_converges_to_the_weighted_mean(weights: list[float] | None, mean: float) -> None:
    torch.manual_seed(0)
    x = embeddings(1)
    learner = MlpPartition(LogPartition(x, BETA, dropout=0.0), x, learning_rate=5e-3, fit_steps=200)
    weight = None if weights is None else torch.tensor(weights)
    learner.fit(ROWS[:1].repeat(3), torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3), seed=0, weight_B=weight)
    assert learner.accuracy()[0] == pytest.approx(mean, abs=0.01)


def test_rounding_does_not_decide_a_step_where_residuals_cancel() -> None:
    """The prior's errors cancel, so the gradient of the output's bias consists of the log-ratios' rounding errors."""
    reward = torch.tensor([1.0, 0.0] * 4)
    ends = []
    for rounding in (3e-7, -3e-7):
        learner = MlpPartition(
            LogPartition(embeddings(), BETA, dropout=0.0), embeddings(), learning_rate=2e-3, fit_steps=1
        )
        learner.fit(ROWS[:1].repeat(8), reward, torch.full((8,), rounding), seed=0)
        ends.append(float(learner.accuracy()[0]))
    assert ends[0] == ends[1]
    assert learner.optimizer.state  # it did take a step


def test_fitting_touches_no_log_ratio_and_no_global_randomness() -> None:
    x = embeddings()
    learner = MlpPartition(LogPartition(x, BETA), x)
    log_ratio = torch.zeros(12, requires_grad=True)
    before = torch.get_rng_state()
    learner.fit(ROWS, torch.ones(12), log_ratio, seed=3)
    assert log_ratio.grad is None
    assert torch.equal(before, torch.get_rng_state())
    assert not learner.network.training


def test_same_seed_same_fit_other_seed_other_dropout() -> None:
    def fitted(seed: int) -> list[float]:
        torch.manual_seed(0)
        learner = MlpPartition(LogPartition(embeddings(), BETA, dropout=0.5), embeddings())
        learner.fit(ROWS, torch.rand(12, generator=torch.Generator().manual_seed(1)), torch.zeros(12), seed)
        return learner.accuracy().tolist()

    assert fitted(1) == fitted(1)
    assert fitted(1) != fitted(2)


def test_chunked_scoring_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = MlpPartition(LogPartition(embeddings(50), BETA), embeddings(50))
    learner.fit(np.arange(50), torch.rand(50), torch.zeros(50), seed=0)
    whole = learner.accuracy()
    monkeypatch.setattr(partition, "CHUNK", 7)
    assert learner.accuracy_of(embeddings(50)) == pytest.approx(whole, abs=1e-6)


def test_matrices_learn_at_a_rate_that_shrinks_with_their_fan_in() -> None:
    x = embeddings(features=256)
    learner = MlpPartition(LogPartition(x, BETA, hidden_size=32), x, learning_rate=1e-2)
    rates = {tuple(group["params"][0].shape): group["lr"] for group in learner.optimizer.param_groups}
    assert rates == {(32, 256): 1e-2 / 4, (32, 32): 2e-2, (1, 32): 2e-2, (32,): 1e-2, (1,): 1e-2}


def test_one_fit_on_a_few_prompts_leaves_the_others_near_the_prior_however_wide_the_embedding() -> None:
    def thrown_about(features: int) -> float:
        torch.manual_seed(0)
        x = embeddings(200, features)
        learner = MlpPartition(LogPartition(x, BETA), x)
        learner.fit(ROWS[:8], torch.tensor([0.0, 1.0] * 4), torch.zeros(8), seed=0)
        return float(np.abs(learner.accuracy()[8:] - 0.5).mean())

    narrow, wide = thrown_about(64), thrown_about(1024)
    assert narrow < 0.1
    assert wide < 2 * narrow


def test_state_restores_weights_and_moments() -> None:
    x, reward = embeddings(), torch.rand(12)
    first = MlpPartition(LogPartition(x, BETA), x)
    first.fit(ROWS, reward, torch.zeros(12), seed=0)
    second = MlpPartition(LogPartition(x, BETA), x)
    assert not np.array_equal(first.accuracy(), second.accuracy())
    second.load_state_dict(first.state_dict())
    assert np.array_equal(first.accuracy(), second.accuracy())
    for learner in (first, second):
        learner.fit(ROWS, reward, torch.zeros(12), seed=1)
    assert np.array_equal(first.accuracy(), second.accuracy())


@pytest.mark.parametrize(
    ("shape", "beta", "message"), [((3,), 0.05, "shape"), ((0, 4), 0.05, "shape"), ((3, 4), 0.0, "beta")]
)
def test_refuses_what_it_cannot_use(shape: tuple[int, ...], beta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LogPartition(torch.zeros(shape), beta)
