"""log Z in closed form: Bayesian linear regression on fixed features of the prompts.

The trajectory-balance loss is a square in log Z. If β·log Z(x) = m + w·φ(x) with fixed features φ, its minimiser solves
a least-squares problem. There is no optimiser, learning rate or seed, and every estimate has a variance.
docs/method.md derives it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pacedrl.method.estimator import ALL, Floats, Indices, Rows
from pacedrl.method.features import FourierFeatures, fourier_features
from pacedrl.method.partition import balance_targets

CHUNK = 4096
"""Number of prompts whose features are converted from float16 at once."""
RIDGES = torch.logspace(-2, 4, 25, dtype=torch.float64)
"""Values of η among which the marginal likelihood chooses."""
NOISE = 1 / 16
"""Prior variance σ₀² of a group's mean target, worth one observation: that of the mean of four rewards at p = ½."""


class ClosedFormPartition:
    """log Z_φ(x) = (m + w·φ(x))/β, with w in closed form and with its posterior distribution (ours).

    The data are one row per prompt and fit: the prompt's features φ and its mean target t̄ over the completions, t = r −
    β·log-ratio. (The completions of a group share what φ cannot see of the prompt, so they are not independent
    observations.) With the prior w ~ N(0, σ²/η) and noise of variance σ² on t̄, and with rows forgotten at the rate γ,

        S ← γS + Σ φφᵀ        s ← γs + Σ φ(t̄ − m)        w = (S + ηI)⁻¹s        v(x) = σ²·φᵀ(S + ηI)⁻¹φ

    At each fit η maximises the marginal likelihood over ``RIDGES``, and σ² follows in closed form. The noise consists
    of the sampling noise of t̄, which is measured within the groups, and of ``unseen_variance``, the variance of the
    accuracy that φ does not explain. So the variance of a prompt's accuracy is v(x) + ``unseen_variance``. A group of
    one completion shows no sampling noise; p̂(1 − p̂) is taken, the largest variance of a reward in [0, 1].

    Sums and solutions are computed in float64 on the CPU, estimates in float32 from float16 features.

    Args:
        embeddings_NH: all prompts' embeddings.
        beta: temperature β of the objective, > 0.
        prior_accuracy: m, β·log Z of every prompt before fitting, in [0, 1].
        discount: γ, the factor by which older rows are multiplied at each fit, in (0, 1].
        components: number of principal components of the embeddings.
        features: number of random Fourier features.
        length_scale: length scale of the kernel, as a multiple of the median distance between prompts.
        device: where the features are kept and estimates computed; the CPU by default.

    Raises ValueError for embeddings of another shape and for settings out of range.
    """

    def __init__(
        self,
        embeddings_NH: Tensor,
        beta: float = 0.05,
        prior_accuracy: float = 0.5,
        *,
        discount: float = 0.9,
        components: int = 128,
        features: int = 512,
        length_scale: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        if embeddings_NH.ndim != 2 or len(embeddings_NH) == 0:
            raise ValueError(f"embeddings must have shape [prompts, features], got {tuple(embeddings_NH.shape)}")
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}")
        if not 0.0 < discount <= 1.0:
            raise ValueError(f"discount must lie in (0, 1], got {discount}")
        self.embeddings_NH = embeddings_NH
        self.beta = beta
        self.prior_accuracy = prior_accuracy
        self.discount = discount
        self.device = torch.device(device)
        self._accuracy_N: Floats | None = None
        self._use(fourier_features(embeddings_NH, components, features, length_scale))
        size = self.features.size
        self.sums = {
            "gram": torch.zeros(size, size, dtype=torch.float64),  # S
            "moment": torch.zeros(size, dtype=torch.float64),  # s
            "rows": torch.zeros((), dtype=torch.float64),
            "squares": torch.zeros((), dtype=torch.float64),  # Σ (t̄ − m)²
            "sampling": torch.zeros((), dtype=torch.float64),  # Σ of the sampling variances of t̄
        }
        self._solve()

    def accuracy(self, rows: Rows = ALL) -> Floats:
        """Return β·log Z of the prompts in ``rows``, by default of all: float64, not clipped to [0, 1].

        The values of all prompts are computed once after each fit, when they are first asked for. The caller must not
        write to the array. Single rows are always computed anew, so that a value does not depend on what was asked for
        before.
        """
        if not isinstance(rows, slice):
            return self._product(self._features(rows), self.weight_F)
        if self._accuracy_N is None:
            self._accuracy_N = self._product(self.features_NF, self.weight_F)
        return self._accuracy_N[rows]

    def accuracy_of(self, embeddings_PH: Tensor) -> Floats:
        """Return β·log Z of other prompts, given their embeddings."""
        return self._product(self.features(embeddings_PH).to(self.device), self.weight_F)

    def variance(self, rows: Rows = ALL) -> Floats:
        """Return v(x), the variance of β·log Z of the given prompts, float64."""
        root_FF = self.root_FF.to(self.device)
        parts = [(part.float() @ root_FF).square().sum(dim=1) for part in torch.split(self._features(rows), CHUNK)]
        variance_P: Floats = torch.cat(parts).double().cpu().numpy()
        return variance_P

    def draw(self, rng: np.random.Generator, rows: Rows = ALL) -> Floats:
        """Draw w from its posterior, and return β·log Z of the given prompts under this one draw."""
        noise_F = torch.from_numpy(rng.standard_normal(self.features.size))
        return self._product(self._features(rows), self.weight_F + self.root_FF.double() @ noise_F)

    @property
    def unseen_variance(self) -> float:
        """Variance of a prompt's accuracy that its features do not explain: σ² less the mean sampling noise of t̄."""
        sampling = float(self.sums["sampling"] / self.sums["rows"]) if self.sums["rows"] > 0 else 0.0
        return max(self.noise - sampling, 0.0)

    def fit(
        self, rows_B: Indices, reward_B: Tensor, log_ratio_B: Tensor, seed: int = 0, weight_B: Tensor | None = None
    ) -> float:
        """Add one step's completions to the data and solve again.

        Args:
            rows_B: row of each completion's prompt.
            reward_B: raw rewards; FlowRL's are z-scored.
            log_ratio_B: Σ_t (log π_θ − log π_old), used without gradient; FlowRL's is mean_t(log π_θ − log π_ref).
            seed: not used, because nothing is random.
            weight_B: weights of the completions, > 0; by default all are 1. A row's weight is the mean of them.

        Returns:
            The mean squared error of the estimates on the completions before the fit, in units of accuracy.
        """
        target_B = balance_targets(reward_B, log_ratio_B, self.beta).double()
        before = float((torch.from_numpy(self.accuracy(rows_B)) - target_B).square().mean())
        rows_P, places_B = np.unique(rows_B, return_inverse=True)
        group_B = torch.from_numpy(places_B)
        count_P = torch.zeros(len(rows_P), dtype=torch.float64).index_add(0, group_B, torch.ones_like(target_B))
        mean_P = torch.zeros_like(count_P).index_add(0, group_B, target_B) / count_P
        squares_P = torch.zeros_like(count_P).index_add(0, group_B, (target_B - mean_P[group_B]).square())
        weight_B = torch.ones_like(target_B) if weight_B is None else weight_B.to("cpu", torch.float64)
        weight_P = torch.zeros_like(count_P).index_add(0, group_B, weight_B) / count_P
        estimate_P = torch.from_numpy(self.accuracy(rows_P)).clamp(0.0, 1.0)
        measured_P = squares_P / (count_P * (count_P - 1)).clamp_min(1.0)
        sampling_P = torch.where(count_P > 1, measured_P, estimate_P * (1.0 - estimate_P))
        features_PF = self._features(rows_P).double().cpu()
        weighted_PF = weight_P[:, None] * features_PF
        error_P = mean_P - self.prior_accuracy
        added = {
            "gram": features_PF.T @ weighted_PF,
            "moment": weighted_PF.T @ error_P,
            "rows": weight_P.sum(),
            "squares": (weight_P * error_P.square()).sum(),
            "sampling": (weight_P * sampling_P).sum(),
        }
        self.sums = {name: self.discount * value + added[name] for name, value in self.sums.items()}
        self._solve()
        return before

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and the feature map as tensors."""
        return {"sums": dict(self.sums), "features": self.features.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned. Its feature map is kept, even if prompts have been added."""
        own = self.features.state_dict()
        if any(not torch.equal(own[name], tensor) for name, tensor in state["features"].items()):
            self._use(FourierFeatures(**state["features"]))
        self.sums = {name: tensor.clone() for name, tensor in state["sums"].items()}
        self._solve()

    def _use(self, features: FourierFeatures) -> None:
        self.features = features
        self.features_NF = features.of_all(self.embeddings_NH).to(self.device)

    def _solve(self) -> None:
        """Choose η and σ² by the marginal likelihood and compute the posterior of w.

        With the eigenvalues d of S and the sum n of the rows' weights, η minimises, up to constants,

            −2·log p(t̄, η) = Σ log(1 + d/η) + (n + 1)·log(σ₀² + Σ(t̄ − m)² − sᵀ(S + ηI)⁻¹s) + (log η)²/16

        The prior of σ² counts as one more observation, of variance σ₀². The prior log η ~ N(0, 4²) is weak; it keeps η
        near 1 while there are no data.
        """
        eigenvalues_F, vectors_FF = torch.linalg.eigh(self.sums["gram"])
        eigenvalues_F = eigenvalues_F.clamp_min(0.0)  # rounding may make them negative
        moment_F = vectors_FF.T @ self.sums["moment"]
        fitted_L = (moment_F.square() / (eigenvalues_F + RIDGES[:, None])).sum(dim=1)
        residual_L = NOISE + (self.sums["squares"] - fitted_L).clamp_min(0.0)
        weight = self.sums["rows"] + 1.0
        determinant_L = torch.log1p(eigenvalues_F / RIDGES[:, None]).sum(dim=1)
        best = int((determinant_L + weight * residual_L.log() + RIDGES.log().square() / 16).argmin())
        self.ridge = float(RIDGES[best])
        self.noise = float(residual_L[best] / weight)
        self.weight_F = vectors_FF @ (moment_F / (eigenvalues_F + self.ridge))
        self.root_FF = (vectors_FF * (self.noise / (eigenvalues_F + self.ridge)).sqrt()).float()
        self._accuracy_N = None

    def _features(self, rows: Rows) -> Tensor:
        return self.features_NF[rows if isinstance(rows, slice) else torch.from_numpy(rows)]

    def _product(self, features_PF: Tensor, weight_F: Tensor) -> Floats:
        weight_F = weight_F.to(self.device, torch.float32)
        product_P = torch.empty(len(features_PF), device=self.device)
        # One buffer for all chunks: allocating each anew takes several times as long as the product.
        buffer_CF = torch.empty(min(len(features_PF), CHUNK), len(weight_F), device=self.device)
        for part, target in zip(torch.split(features_PF, CHUNK), torch.split(product_P, CHUNK), strict=True):
            torch.mv(buffer_CF[: len(part)].copy_(part), weight_F, out=target)
        return self.prior_accuracy + product_P.double().cpu().numpy()
