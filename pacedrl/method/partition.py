"""The learned log partition function log Z_φ(x), how it is fitted, and its values for all prompts.

Z_φ reads fixed embeddings of the prompts instead of the policy's activations, so it is independent of the policy: it is
computed in float32 and has its own optimiser and timescale. At the policy's learning rate it would remain a random
function (GFlowRL, arXiv 2607.13394).
"""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pacedrl.method.estimator import Floats

CHUNK = 8192
"""Number of prompts whose embeddings are converted to float32 at once."""
PROJECTION_SAMPLE = 20_000
"""Maximum number of prompts, evenly spaced, from which principal components are computed."""
BASE_WIDTH = 64
"""Fan-in of a matrix whose learning rate is not scaled."""
GRID = 2.0**-20
"""Spacing of the grid to which log Z's targets are rounded, in units of accuracy. It exceeds the rounding errors of
log-ratios, about 1e-8. The errors of the prior on a first batch may cancel exactly. Without the grid, AdamW would then
take full steps along a gradient of rounding errors, which depend on how the completions were batched."""


class LogPartition(nn.Module):
    """log Z_φ: an MLP of three linear layers that maps a prompt's embedding to log Z, evaluated in float32.

    The layers are 2 × [Linear → GELU → LayerNorm → Dropout] → Linear, as in FlowRL (arXiv 2509.15207). We depart from
    it in three ways. Each feature of the embedding is standardised with the statistics of ``embeddings_NH``, because
    the hidden states of a language model share a large offset that hides the differences between prompts. The network's
    output is in units of accuracy and is divided by β, so that a learning rate has the same effect at every β. The last
    layer is initialised with zero weights and the bias ``prior_accuracy``, so that every prompt starts at the prior.

    Args:
        embeddings_NH: all prompts' embeddings, which determine the width and the standardisation.
        beta: temperature β of the objective, > 0.
        prior_accuracy: β·log Z of every prompt before fitting, in [0, 1].
        hidden_size: width of the hidden layers; H by default.
        dropout: share of hidden units dropped while fitting.

    Raises ValueError for embeddings of another shape and for β ≤ 0.
    """

    mean_H: Tensor
    scale_H: Tensor

    def __init__(
        self,
        embeddings_NH: Tensor,
        beta: float,
        prior_accuracy: float = 0.5,
        hidden_size: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if embeddings_NH.ndim != 2 or len(embeddings_NH) == 0:
            raise ValueError(f"embeddings must have shape [prompts, features], got {tuple(embeddings_NH.shape)}")
        if beta <= 0:
            raise ValueError(f"beta must be positive, got {beta}")
        self.beta = beta
        features = embeddings_NH.shape[1]
        hidden = hidden_size or features
        mean_H, scale_H = feature_moments(embeddings_NH)
        self.register_buffer("mean_H", mean_H)
        self.register_buffer("scale_H", scale_H)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, prior_accuracy)
        self.layers = nn.Sequential(*_block(features, hidden, dropout), *_block(hidden, hidden, dropout), last)

    def forward(self, embeddings_PH: Tensor) -> Tensor:
        """Return log Z of each prompt in nats: [P, H] → [P]."""
        return self.accuracy(embeddings_PH) / self.beta

    def accuracy(self, embeddings_PH: Tensor) -> Tensor:
        """Return p̂(x) = β·log Z_φ(x), an estimate of π_old's accuracy that is not clipped to [0, 1]: [P, H] → [P]."""
        standardised = (embeddings_PH.float() - self.mean_H) / self.scale_H
        output: Tensor = self.layers(standardised)
        return output.squeeze(-1)


class PartitionLearner:
    """A LogPartition with its own AdamW: evaluates it without gradient and fits it to rollouts.

    Args:
        partition: the module, on the device to compute on; embeddings may be on another device.
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        fit_steps: number of optimiser steps on each batch of rollouts.
        scale_by_fan_in: multiplies the learning rate of a matrix with fan-in n by 64/n (μP, arXiv 2203.03466), so that
            one rate suits embeddings of any size. Without it, a fit on a few prompts changes the estimates of all other
            prompts erratically, and more so for wider embeddings.
    """

    def __init__(
        self,
        partition: LogPartition,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        fit_steps: int = 4,
        scale_by_fan_in: bool = True,
    ) -> None:
        self.partition = partition.eval()
        self.fit_steps = fit_steps
        groups = [
            {
                "params": [parameter],
                "lr": learning_rate
                * (BASE_WIDTH / parameter.shape[1] if scale_by_fan_in and parameter.ndim == 2 else 1),
            }
            for parameter in partition.parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    @property
    def beta(self) -> float:
        return self.partition.beta

    @property
    def device(self) -> torch.device:
        return next(self.partition.parameters()).device

    @torch.no_grad()
    def accuracy(self, embeddings_NH: Tensor) -> Tensor:
        """Return p̂ of every prompt, shape [N], computed without dropout in chunks of ``CHUNK`` prompts."""
        parts = torch.split(embeddings_NH, CHUNK)
        return torch.cat([self.partition.accuracy(part.to(self.device)) for part in parts])

    def fit(self, embeddings_BH: Tensor, reward_B: Tensor, log_ratio_B: Tensor, seed: int) -> float:
        """Move log Z towards the minimiser of the trajectory-balance loss, mean_B (log Z + log-ratio − r/β)².

        The minimiser for one prompt is the mean of r/β − log-ratio (a sampled version of the paper's Prop. 4.1). The
        loss is multiplied by β², which makes it a squared error in units of accuracy; AdamW is invariant to it up to
        its ε. Targets are rounded to multiples of ``GRID``.

        Args:
            embeddings_BH: embedding of each completion's prompt.
            reward_B: raw rewards; FlowRL's are z-scored.
            log_ratio_B: Σ_t (log π_θ − log π_old), used without gradient; FlowRL's is mean_t(log π_θ − log π_ref).
            seed: seed of the dropout.

        Returns:
            The loss, multiplied by β², before the first step.
        """
        embeddings_BH = embeddings_BH.to(self.device)
        target_B = (reward_B - self.beta * log_ratio_B.detach()).to(self.device, torch.float32)
        target_B = (target_B / GRID).round() * GRID
        with torch.no_grad():
            before = (self.partition.accuracy(embeddings_BH) - target_B).square().mean().item()
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            self.partition.train()
            for _ in range(self.fit_steps):
                self.optimizer.zero_grad(set_to_none=True)
                loss = (self.partition.accuracy(embeddings_BH) - target_B).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
            self.partition.eval()
        return before

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser state as tensors, numbers, strings, lists and dicts."""
        return {"partition": self.partition.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.partition.load_state_dict(state["partition"])
        # torch's optimisers keep the tensors they load and would update the caller's.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))


class PartitionScores:
    """β·log Z_φ of all N prompts, kept up to date as φ is fitted.

    With ``rescore_share`` 1, as in the paper, all values are recomputed with the current φ on demand. Values below 1
    are meant for a million prompts: each fit recomputes the next ⌈share·N⌉ prompts in turn and the prompts of the fit,
    and the other values are up to 1/share fits old.

    Args:
        learner: the partition function with its optimiser.
        embeddings_NH: floating-point embeddings [N, H]; they may be memory-mapped.
        rescore_share: share of the prompts recomputed after each fit, in (0, 1].
    """

    def __init__(self, learner: PartitionLearner, embeddings_NH: Tensor, rescore_share: float = 1.0) -> None:
        if not 0.0 < rescore_share <= 1.0:
            raise ValueError(f"rescore_share must lie in (0, 1], got {rescore_share}")
        self.learner = learner
        self.embeddings_NH = embeddings_NH
        self.rescore_share = rescore_share
        self.next = 0
        self._accuracy_N: Floats | None = None

    def all(self) -> Floats:
        """Return the values of all prompts, [N]. The caller must not write to the array."""
        if self._accuracy_N is None:
            self._accuracy_N = self._compute(slice(None))
        return self._accuracy_N

    def of(self, rows: NDArray[np.int64]) -> Floats:
        """Return the values of the given prompts, always with the current φ."""
        return self.all()[rows] if self.rescore_share == 1.0 else self._compute(torch.from_numpy(rows))

    def fitted(self, rows: NDArray[np.int64]) -> None:
        """Update the values after a fit of φ on the given prompts."""
        if self.rescore_share == 1.0:
            self._accuracy_N = None
            return
        accuracy_N = self.all() if self._accuracy_N is None else self._accuracy_N
        count = len(accuracy_N)
        end = min(self.next + math.ceil(self.rescore_share * count), count)
        accuracy_N[self.next : end] = self._compute(slice(self.next, end))
        accuracy_N[rows] = self._compute(torch.from_numpy(rows))
        self.next = end % count

    def fits_ago(self) -> NDArray[np.int64]:
        """Return the number of fits since each prompt's last turn to be recomputed, [N]; 0 if ``rescore_share`` is 1.

        Prompts that have not had a turn get the number that earlier rounds would have given.
        """
        count = len(self.embeddings_NH)
        if self.rescore_share == 1.0:
            return np.zeros(count, dtype=np.int64)
        turn = math.ceil(self.rescore_share * count)
        turns = math.ceil(count / turn)
        return (self.next // turn - 1 - np.arange(count) // turn) % turns

    def state_dict(self) -> dict[str, Any]:
        """Return the values if ``rescore_share`` is below 1; otherwise they are recomputed and there is no state."""
        if self.rescore_share == 1.0 or self._accuracy_N is None:
            return {}
        return {"accuracy": torch.from_numpy(self._accuracy_N.copy()), "next": self.next}

    def load_state_dict(self, state: dict[str, Any], rows: NDArray[np.int64]) -> None:
        """Restore the state that `state_dict` returned for the prompts now in ``rows``; recompute the others."""
        self._accuracy_N = None
        if state and self.rescore_share < 1.0:
            self.next = state["next"] if len(rows) == len(self.embeddings_NH) else 0
            self.all()[rows] = state["accuracy"].numpy()

    def _compute(self, rows: slice | Tensor) -> Floats:
        accuracy: Floats = self.learner.accuracy(self.embeddings_NH[rows]).double().cpu().numpy()
        return accuracy


def feature_moments(embeddings_NH: Tensor) -> tuple[Tensor, Tensor]:
    """Return each feature's mean and standard deviation (at least 1e-6), float32 [H], in one pass over the prompts."""
    total_H = torch.zeros(embeddings_NH.shape[1], dtype=torch.float64, device=embeddings_NH.device)
    squares_H = torch.zeros_like(total_H)
    shift_H = embeddings_NH[0].double()  # without the large common offset, squares keep their precision
    for part in torch.split(embeddings_NH, CHUNK):
        shifted = part.double() - shift_H
        total_H += shifted.sum(dim=0)
        squares_H += shifted.square().sum(dim=0)
    mean_H = total_H / len(embeddings_NH)
    variance_H = (squares_H / len(embeddings_NH) - mean_H.square()).clamp_min(0.0)
    return (mean_H + shift_H).float(), variance_H.sqrt().clamp_min(1e-6).float()


def project(embeddings_NH: Tensor, size: int) -> Tensor:
    """Return the first ``size`` principal components of the standardised embeddings: float16 [N, size].

    This saves time with very many prompts: log Z of 128 features costs a hundredth of log Z of 1,536 features.

    Raises ValueError if there are fewer than ``size`` features or prompts.
    """
    prompts, features = embeddings_NH.shape
    if not 1 <= size <= min(features, prompts):
        raise ValueError(f"cannot project {prompts} prompts of {features} features to {size}")
    mean_H, scale_H = feature_moments(embeddings_NH)
    rows = torch.linspace(0, prompts - 1, min(prompts, PROJECTION_SAMPLE), dtype=torch.float64).long()
    sample_SH = (embeddings_NH[rows].float() - mean_H) / scale_H
    _, vectors_HH = torch.linalg.eigh(sample_SH.T @ sample_SH)  # in ascending order
    to_HK = vectors_HH[:, -size:].flip(1)
    parts = [((part.float() - mean_H) / scale_H @ to_HK).half() for part in torch.split(embeddings_NH, CHUNK)]
    return torch.cat(parts)


def _block(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.GELU(), nn.LayerNorm(outputs), nn.Dropout(dropout)]
