"""The learned log partition function log Z_φ(x) and its fitting.

Z_φ reads fixed embeddings of the prompts, never live activations, so it lives outside the policy: in float32, with
its own optimiser and timescale. Trained at the policy's learning rate it stays a random function (GFlowRL,
arXiv 2607.13394).
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pacedrl.method.estimator import Floats

CHUNK = 8192
"""Prompts whose embeddings are held in float32 at once."""
PROJECTION_SAMPLE = 20_000
"""Prompts, evenly spaced, from which principal components are computed."""
BASE_WIDTH = 64
"""The fan-in at which a matrix learns at the learning rate itself."""
GRID = 2.0**-20
"""Targets of log Z, in accuracy, are rounded to multiples of this, about 1e-6, above the rounding of log-ratios (some
1e-8). Rewards of a first batch may miss the prior by amounts that cancel exactly; AdamW would make whole steps of what
rounding leaves of such a gradient, and so of how completions happened to be batched."""


class LogPartition(nn.Module):
    """log Z_φ: an MLP of three linear layers on the embedding of a prompt, evaluated in float32.

    2 × [Linear → GELU → LayerNorm → Dropout] → Linear, as in FlowRL (arXiv 2509.15207). Departures, ours:
    the embedding is standardised feature by feature with the statistics of ``embeddings_NH``, because a language
    model's hidden states share a large common offset that hides what tells prompts apart; the network's output is
    read in units of accuracy and divided by β, so that learning rates mean the same at every β; the last layer starts
    at zero weight and bias ``prior_accuracy``, so that every prompt starts at the prior.

    Args:
        embeddings_NH: all prompts' embeddings, from which width and standardisation are taken.
        beta: temperature β of the objective, > 0.
        prior_accuracy: β·log Z of every prompt before fitting, in [0, 1].
        hidden_size: width of the hidden layers; H unless given.
        dropout: share of hidden units dropped while fitting.
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
        """log Z of each prompt: [P, H] → [P], in nats."""
        return self.accuracy(embeddings_PH) / self.beta

    def accuracy(self, embeddings_PH: Tensor) -> Tensor:
        """p̂(x) = β·log Z_φ(x): [P, H] → [P]. An estimate of π_old's accuracy; not clipped to [0, 1]."""
        standardised = (embeddings_PH.float() - self.mean_H) / self.scale_H
        output: Tensor = self.layers(standardised)
        return output.squeeze(-1)


class PartitionLearner:
    """LogPartition with its own AdamW: evaluation without gradient, fitting to what the rollouts showed.

    Args:
        partition: the module, on the device where it shall be computed; embeddings may be elsewhere.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        fit_steps: optimiser steps on each batch of rollouts.
        scale_by_fan_in: a matrix with fan-in n learns at 64/n of the rate (μP, arXiv 2203.03466), so that one rate
            serves embeddings of any size: without this, one fit on a few prompts throws the estimates of all others
            about, the more so the wider the embedding.
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
        """p̂ of every prompt, shape [N], in eval mode, some thousands at a time."""
        parts = torch.split(embeddings_NH, CHUNK)
        return torch.cat([self.partition.accuracy(part.to(self.device)) for part in parts])

    def fit(self, embeddings_BH: Tensor, reward_B: Tensor, log_ratio_B: Tensor, seed: int) -> float:
        """Move log Z towards the minimiser of the trajectory-balance loss, mean_B (log Z + log-ratio − r/β)².

        The minimiser for one prompt is the mean of r/β − log-ratio (paper's Prop. 4.1, sampled). The loss is scaled
        by β² so that it is a squared error in accuracy; AdamW does not mind. ``reward_B`` is raw, ``log_ratio_B`` is
        Σ_t (log π_θ − log π_old) and gets no gradient (FlowRL's are its own). Targets are rounded to ``GRID``. ``seed``
        fixes the dropout.

        Returns the β²-scaled loss before the first step.
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
        """Weights and optimiser state: tensors, numbers, strings, lists and dicts only."""
        return {"partition": self.partition.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.partition.load_state_dict(state["partition"])
        # Copied: torch's optimizers would otherwise go on to update the caller's own tensors.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))


class PartitionScores:
    """β·log Z_φ of N prompts.

    With ``rescore_share`` 1, the paper's way, all are computed with the current φ when they are asked for. Below 1,
    for a million prompts, each fit is followed by computing the next ⌈share·N⌉ in turn and the prompts that were just
    seen; the others keep what they had, at most 1/share fits ago.

    Args:
        learner: of the partition function.
        embeddings_NH: [N, H], float, perhaps memory-mapped.
        rescore_share: in (0, 1].
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
        """Of every prompt, [N]; do not write to it."""
        if self._accuracy_N is None:
            self._accuracy_N = self._compute(slice(None))
        return self._accuracy_N

    def of(self, rows: NDArray[np.int64]) -> Floats:
        """Of some prompts, with the current φ whatever the share."""
        return self.all()[rows] if self.rescore_share == 1.0 else self._compute(torch.from_numpy(rows))

    def fitted(self, rows: NDArray[np.int64]) -> None:
        """φ has changed, by a fit on these prompts."""
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
        """How many fits ago each prompt's turn to be computed anew was, [N]; 0 where all always are.

        That of a prompt which has not had its turn yet is what it would be had there been rounds before.
        """
        count = len(self.embeddings_NH)
        if self.rescore_share == 1.0:
            return np.zeros(count, dtype=np.int64)
        turn = math.ceil(self.rescore_share * count)
        turns = math.ceil(count / turn)
        return (self.next // turn - 1 - np.arange(count) // turn) % turns

    def state_dict(self) -> dict[str, Any]:
        """What a share below 1 leaves out of date; nothing where all is computed anew."""
        if self.rescore_share == 1.0 or self._accuracy_N is None:
            return {}
        return {"accuracy": torch.from_numpy(self._accuracy_N.copy()), "next": self.next}

    def load_state_dict(self, state: dict[str, Any], rows: NDArray[np.int64]) -> None:
        """Restore what `state_dict` gave, for the prompts that now stand in ``rows``; others are computed anew."""
        self._accuracy_N = None
        if state and self.rescore_share < 1.0:
            self.next = state["next"] if len(rows) == len(self.embeddings_NH) else 0
            self.all()[rows] = state["accuracy"].numpy()

    def _compute(self, rows: slice | Tensor) -> Floats:
        accuracy: Floats = self.learner.accuracy(self.embeddings_NH[rows]).double().cpu().numpy()
        return accuracy


def feature_moments(embeddings_NH: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature (the latter at least 1e-6), float32 [H], in one pass over N."""
    total_H = torch.zeros(embeddings_NH.shape[1], dtype=torch.float64, device=embeddings_NH.device)
    squares_H = torch.zeros_like(total_H)
    shift_H = embeddings_NH[0].double()  # hidden states share a large offset, which squares would drown in
    for part in torch.split(embeddings_NH, CHUNK):
        shifted = part.double() - shift_H
        total_H += shifted.sum(dim=0)
        squares_H += shifted.square().sum(dim=0)
    mean_H = total_H / len(embeddings_NH)
    variance_H = (squares_H / len(embeddings_NH) - mean_H.square()).clamp_min(0.0)
    return (mean_H + shift_H).float(), variance_H.sqrt().clamp_min(1e-6).float()


def project(embeddings_NH: Tensor, size: int) -> Tensor:
    """The embeddings' first ``size`` principal components, of standardised features: float16 [N, size].

    For very many prompts: log Z of 128 numbers a prompt costs a hundredth of that of 1,536.

    Raises ValueError when there are not as many features, or prompts.
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
