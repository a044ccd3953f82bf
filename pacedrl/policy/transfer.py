"""Copies between the host and the device that samples: the host waits for the device once a token."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return integers as a tensor on ``device``; the host does not wait for work that the device has yet to do."""
    # CUDA copies pageable memory into its own buffer before the call returns, so the tensor may be freed at once.
    # torch.tensor(values, device=device) would wait.
    return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)


def read_back(token_B: Tensor, logprob_B: Tensor) -> tuple[list[int], list[float]]:
    """Return new tokens and their log-probabilities. The host waits for the device once, for both together."""
    # Float64 holds token ids and float32 numbers exactly.
    tokens, logprobs = torch.stack([token_B.double(), logprob_B.double()]).tolist()
    return [int(token) for token in tokens], logprobs
