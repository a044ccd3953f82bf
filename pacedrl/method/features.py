"""Random Fourier features of the prompts' embeddings, the fixed features of a log Z in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 8192
"""Number of prompts whose embeddings are converted to float32 at once."""
SAMPLE = 20_000
"""Maximum number of prompts, evenly spaced, from which principal components are computed."""
PAIRS = 1_000
"""Maximum number of prompts, evenly spaced, whose distances determine the length scale."""
SEED = 0
"""Seed of the random frequencies. It is the same in all runs, so that runs differ in their own seed only."""


@dataclass(frozen=True)
class FourierFeatures:
    """A feature map φ with φ(x)·φ(x') ≈ 1 + exp(−|z − z'|²/2ℓ²), where z are principal components of the embeddings.

    Each feature of the embedding is standardised, and its first K principal components are kept. The Gaussian kernel on
    them is approximated by F random Fourier features √(2/F)·cos(ω·z + ψ) (Rahimi & Recht, NeurIPS 2007). A constant
    feature of 1 lets log Z have a mean.

    Attributes:
        mean_H: mean of each feature of the embedding.
        scale_H: its standard deviation, at least 1e-6.
        components_HK: principal components as columns, the first with the largest variance.
        frequencies_KF: ω, drawn from N(0, ℓ⁻²).
        phase_F: ψ, drawn uniformly from [0, 2π).
    """

    mean_H: Tensor
    scale_H: Tensor
    components_HK: Tensor
    frequencies_KF: Tensor
    phase_F: Tensor

    @property
    def size(self) -> int:
        """Number of features, F + 1."""
        return len(self.phase_F) + 1

    def __call__(self, embeddings_PH: Tensor) -> Tensor:
        """Compute the features in float32: [P, H] → [P, F + 1], on the device of the embeddings."""
        moved = {name: tensor.to(embeddings_PH.device) for name, tensor in vars(self).items()}
        z_PK = (embeddings_PH.float() - moved["mean_H"]) / moved["scale_H"] @ moved["components_HK"]
        waves_PF = torch.cos(z_PK @ moved["frequencies_KF"] + moved["phase_F"]) * math.sqrt(2.0 / len(self.phase_F))
        return torch.cat([waves_PF, waves_PF.new_ones(len(waves_PF), 1)], dim=1)

    def of_all(self, embeddings_NH: Tensor) -> Tensor:
        """Compute the features of all prompts in chunks: float16 [N, F + 1], 1 GB for a million prompts at F = 512.

        They are in memory, not mapped from a file, because each step reads all of them.
        """
        features_NF = torch.empty(len(embeddings_NH), self.size, dtype=torch.float16)
        for start in range(0, len(embeddings_NH), CHUNK):
            features_NF[start : start + CHUNK] = self(embeddings_NH[start : start + CHUNK]).half()
        return features_NF

    def state_dict(self) -> dict[str, Tensor]:
        """Return the attributes on the CPU, so that a state can be restored on another device."""
        return {name: tensor.cpu() for name, tensor in vars(self).items()}


def fourier_features(
    embeddings_NH: Tensor, components: int = 128, features: int = 512, length_scale: float = 1.0
) -> FourierFeatures:
    """Return the feature map for these prompts. It is deterministic.

    Args:
        embeddings_NH: embeddings of all prompts, [N, H].
        components: number K of principal components; all H if the embeddings are narrower.
        features: number F of Fourier features.
        length_scale: ℓ as a multiple of the median distance between two prompts.
    """
    mean_H, scale_H = feature_moments(embeddings_NH)
    sample_SH = (embeddings_NH[_evenly(len(embeddings_NH), SAMPLE)].float() - mean_H) / scale_H
    _, vectors_HH = torch.linalg.eigh((sample_SH.T @ sample_SH).double())  # in ascending order
    components_HK = vectors_HH[:, -components:].flip(1).float()
    # The sign of an eigenvector is arbitrary; this makes it the same on every machine.
    largest_K = components_HK.gather(0, components_HK.abs().argmax(dim=0, keepdim=True))
    components_HK = components_HK * largest_K.sign()
    z_MK = sample_SH[_evenly(len(sample_SH), PAIRS)] @ components_HK
    distances = torch.pdist(z_MK) if len(z_MK) > 1 else torch.ones(1)
    distances = distances[distances > 0]
    scale = length_scale * (distances.median().item() if len(distances) > 0 else 1.0)
    generator = torch.Generator().manual_seed(SEED)
    frequencies_KF = torch.randn(components_HK.shape[1], features, generator=generator) / scale
    phase_F = 2 * math.pi * torch.rand(features, generator=generator)
    return FourierFeatures(mean_H, scale_H, components_HK, frequencies_KF, phase_F)


def feature_moments(embeddings_NH: Tensor) -> tuple[Tensor, Tensor]:
    """Return each feature's mean and standard deviation (at least 1e-6), float32 [H], in one pass over the prompts.

    Raises ValueError if an embedding is not finite.
    """
    total_H = torch.zeros(embeddings_NH.shape[1], dtype=torch.float64, device=embeddings_NH.device)
    squares_H = torch.zeros_like(total_H)
    shift_H = embeddings_NH[0].double()  # without the large common offset, squares keep their precision
    for part in torch.split(embeddings_NH, CHUNK):
        shifted = part.double() - shift_H
        total_H += shifted.sum(dim=0)
        squares_H += shifted.square().sum(dim=0)
    if not torch.isfinite(total_H).all():
        row = int((~torch.isfinite(embeddings_NH)).any(dim=1).nonzero()[0])
        raise ValueError(f"embeddings must be finite, but that of prompt {row} (counted from 0) is not")
    mean_H = total_H / len(embeddings_NH)
    variance_H = (squares_H / len(embeddings_NH) - mean_H.square()).clamp_min(0.0)
    return (mean_H + shift_H).float(), variance_H.sqrt().clamp_min(1e-6).float()


def _evenly(count: int, most: int) -> Tensor:
    """Return at most ``most`` of ``count`` indices, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).long()
