"""Fourier features approximate the Gaussian kernel of the embeddings' principal components."""

from __future__ import annotations

import pytest
import torch

from pacedrl.method import features
from pacedrl.method.features import CHUNK, feature_moments, fourier_features


def embeddings(count: int = 300, width: int = 12, seed: int = 0) -> torch.Tensor:
    return 5.0 + torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_inner_products_are_one_plus_the_gaussian_kernel() -> None:
    x = embeddings()
    phi = fourier_features(x, features=8192)(x)
    standard = (x - x.mean(dim=0)) / x.std(dim=0, unbiased=False)
    distance = torch.cdist(standard, standard)
    pairs = distance[*torch.triu_indices(300, 300, offset=1)]
    kernel = torch.exp(-distance.square() / (2 * pairs.median() ** 2))
    torch.testing.assert_close(phi @ phi.T, 1 + kernel, atol=0.06, rtol=0)


def test_a_multiple_of_the_median_distance_is_the_length_scale() -> None:
    x = embeddings()
    one, two = (fourier_features(x, length_scale=scale) for scale in (1.0, 2.0))
    torch.testing.assert_close(one.frequencies_KF, 2 * two.frequencies_KF)


def test_principal_components_keep_what_varies_most() -> None:
    generator = torch.Generator().manual_seed(0)
    factors_N2 = torch.randn(500, 2, generator=generator)
    mixing_2H = torch.randn(2, 12, generator=generator)
    x = (50 + factors_N2 @ mixing_2H + 0.01 * torch.randn(500, 12, generator=generator)).half()
    made = fourier_features(x, components=2)
    z_N2 = (x.float() - made.mean_H) / made.scale_H @ made.components_HK
    # The two components tell the two factors: each is a linear function of them.
    inputs = torch.cat([z_N2, torch.ones(500, 1)], dim=1)
    residual = factors_N2 - inputs @ torch.linalg.lstsq(inputs, factors_N2).solution
    assert float(residual.std()) < 0.02
    first, second = z_N2.std(dim=0)
    assert first > second


def test_the_map_is_deterministic_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two = fourier_features(embeddings()), fourier_features(embeddings())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(two.state_dict()[name], tensor) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("x", [torch.ones(5, 3), torch.randn(1, 3), torch.zeros(2, 1), torch.eye(3, 200).half()])
def test_degenerate_embeddings_give_finite_features(x: torch.Tensor) -> None:
    made = fourier_features(x)
    assert made.of_all(x).isfinite().all()
    assert made.of_all(x).shape == (len(x), 513)


def test_all_features_in_chunks_are_those_of_one_call_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    x = embeddings(20)
    made = fourier_features(x)
    monkeypatch.setattr(features, "CHUNK", 7)
    assert torch.equal(made.of_all(x), made(x).half())


def test_moments_are_those_of_all_rows_in_chunks() -> None:
    rows = 2 * CHUNK + 77
    embeddings_NH = (1000 + torch.randn(rows, 3, dtype=torch.float64) * torch.tensor([1e-2, 1.0, 0.0])).float()
    mean_H, scale_H = feature_moments(embeddings_NH)
    torch.testing.assert_close(mean_H, embeddings_NH.double().mean(dim=0).float())
    expected = embeddings_NH.double().std(dim=0, unbiased=False).clamp_min(1e-6).float()
    torch.testing.assert_close(scale_H, expected, rtol=1e-4, atol=1e-7)
