"""The learned log partition function log Z_φ(x) as an MLP, with its fit (the paper's).

Z_φ reads fixed embeddings of the prompts instead of the policy's activations, so it is independent of the policy: it is
computed in float32 and has its own optimiser and timescale. At the policy's learning rate it would remain a random
function (GFlowRL, arXiv 2607.13394).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pacedrl.method.estimator import ALL, Floats, Indices, Rows
from pacedrl.method.features import CHUNK, feature_moments

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


class MlpPartition:
    """log Z of all prompts by a `LogPartition`, fitted to rollouts by its own AdamW (the paper's).

    Args:
        network: the module, on the device to compute on.
        embeddings_NH: floating-point embeddings of all prompts; they may be memory-mapped and on another device.
        learning_rate: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        fit_steps: number of optimiser steps on each batch of rollouts.
        scale_by_fan_in: multiplies the learning rate of a matrix with fan-in n by 64/n (μP, arXiv 2203.03466), so that
            one rate suits embeddings of any size. Without it, a fit on a few prompts changes the estimates of all other
            prompts erratically, and more so for wider embeddings.
    """

    def __init__(
        self,
        network: LogPartition,
        embeddings_NH: Tensor,
        learning_rate: float = 2e-3,
        weight_decay: float = 0.0,
        fit_steps: int = 4,
        scale_by_fan_in: bool = True,
    ) -> None:
        self.network = network.eval()
        self.embeddings_NH = embeddings_NH
        self.fit_steps = fit_steps
        self._accuracy_N: Floats | None = None
        groups = [
            {
                "params": [parameter],
                "lr": learning_rate
                * (BASE_WIDTH / parameter.shape[1] if scale_by_fan_in and parameter.ndim == 2 else 1),
            }
            for parameter in network.parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    @property
    def beta(self) -> float:
        return self.network.beta

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def accuracy(self, rows: Rows = ALL) -> Floats:
        """Return β·log Z of the prompts in ``rows``, by default of all: float64, not clipped to [0, 1].

        All values are computed at once, after each fit. The caller must not write to the array.
        """
        if self._accuracy_N is None:
            self._accuracy_N = self.accuracy_of(self.embeddings_NH)
        return self._accuracy_N[rows]

    @torch.no_grad()
    def accuracy_of(self, embeddings_PH: Tensor) -> Floats:
        """Return β·log Z of prompts with these embeddings, computed without dropout in chunks of ``CHUNK`` prompts."""
        parts = [self.network.accuracy(part.to(self.device)) for part in torch.split(embeddings_PH, CHUNK)]
        accuracy_P: Floats = torch.cat(parts).double().cpu().numpy()
        return accuracy_P

    def fit(
        self, rows_B: Indices, reward_B: Tensor, log_ratio_B: Tensor, seed: int, weight_B: Tensor | None = None
    ) -> float:
        """Move log Z towards the minimiser of the trajectory-balance loss, mean_B (log Z + log-ratio − r/β)².

        The minimiser for one prompt is the mean of r/β − log-ratio (a sampled version of the paper's Prop. 4.1). The
        loss is multiplied by β², which makes it a squared error in units of accuracy; AdamW is invariant to it up to
        its ε.

        Args:
            rows_B: row of each completion's prompt.
            reward_B: raw rewards; FlowRL's are z-scored.
            log_ratio_B: Σ_t (log π_θ − log π_old), used without gradient; FlowRL's is mean_t(log π_θ − log π_ref).
            seed: seed of the dropout.
            weight_B: weights of the completions in the mean, > 0; by default all are 1.

        Returns:
            The loss, multiplied by β² and without weights, before the first step.
        """
        embeddings_BH = self.embeddings_NH[torch.from_numpy(rows_B)].to(self.device)
        target_B = balance_targets(reward_B, log_ratio_B, self.beta).to(self.device)
        weight_B = torch.ones(len(rows_B)) if weight_B is None else weight_B.float()
        share_B = (weight_B / weight_B.mean()).to(self.device)
        with torch.no_grad():
            before = (self.network.accuracy(embeddings_BH) - target_B).square().mean().item()
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            self.network.train()
            for _ in range(self.fit_steps):
                self.optimizer.zero_grad(set_to_none=True)
                loss = (share_B * (self.network.accuracy(embeddings_BH) - target_B).square()).mean()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
            self.network.eval()
        self._accuracy_N = None
        return before

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimiser state as tensors, numbers, strings, lists and dicts."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        # torch's optimisers keep the tensors they load and would update the caller's.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self._accuracy_N = None


def balance_targets(reward_B: Tensor, log_ratio_B: Tensor, beta: float) -> Tensor:
    """Return r − β·log-ratio, what β·log Z is fitted to, rounded to multiples of ``GRID``: float32 [B] on the CPU."""
    target_B = (reward_B - beta * log_ratio_B.detach()).to("cpu", torch.float32)
    return (target_B / GRID).round() * GRID


def _block(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.GELU(), nn.LayerNorm(outputs), nn.Dropout(dropout)]
