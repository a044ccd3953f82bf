"""Log-probabilities of tokens computed from hidden states without holding all [tokens, vocabulary] logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Number of logits held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class Head:
    """Turns hidden states into logits: ``softcap(scale · (h Wᵀ + b))`` with softcap(z) = c·tanh(z/c) if c is given."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_KH: Tensor) -> Tensor:
        """Compute float32 logits [K, V] of hidden states [K, H]."""
        bias = None if self.bias_V is None else self.bias_V.to(hidden_KH.dtype)
        logits_KV = torch.nn.functional.linear(hidden_KH, self.weight_VH.to(hidden_KH.dtype), bias).float()
        logits_KV = logits_KV * self.scale if self.scale != 1.0 else logits_KV
        return logits_KV if self.softcap is None else self.softcap * torch.tanh(logits_KV / self.softcap)


def token_logprobs(hidden_KH: Tensor, head: Head, target_K: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute log softmax(logits/temperature)[target] and that distribution's entropy, both float32 [K], in nats.

    Logits are computed for some rows at a time, and again in the backward pass, so memory grows with K·H instead of
    K·V. Gradients flow through the log-probabilities into the hidden states and the head; the entropy has no gradient.
    """
    output: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_KH, head.weight_VH, head.bias_V, target_K, head.scale, head.softcap, temperature
    )
    return output


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_K: Tensor,
        scale: float,
        softcap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight_VH, bias_V, scale, softcap)
        logprob_K = torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device)
        entropy_K = torch.empty_like(logprob_K)
        for rows in _chunks(len(hidden_KH), len(weight_VH)):
            logprob_CV = torch.log_softmax(head.logits(hidden_KH[rows]).div_(temperature), dim=-1)
            logprob_K[rows] = logprob_CV.gather(1, target_K[rows, None]).squeeze(1)
            entropy_K[rows] = -torch.linalg.vecdot(logprob_CV.exp(), logprob_CV.clamp_min_(torch.finfo().min))
        ctx.save_for_backward(hidden_KH, weight_VH, bias_V, target_K)
        ctx.settings = (scale, softcap, temperature)
        ctx.mark_non_differentiable(entropy_K)
        return logprob_K, entropy_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_KH, weight_VH, bias_V, target_K = ctx.saved_tensors
        scale, softcap, temperature = ctx.settings
        head = Head(weight_VH, bias_V, scale, softcap)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden_KH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias else None
        for rows in _chunks(len(hidden_KH), len(weight_VH)):
            # d log p[target] / d logits = (onehot − p) / temperature, then back through softcap and scale.
            logits_CV = head.logits(hidden_KH[rows])
            # The derivative of the softcap needs the logits unchanged.
            scaled_CV = logits_CV.div_(temperature) if softcap is None else logits_CV / temperature
            grad_CV = torch.softmax(scaled_CV, dim=-1).neg_()
            grad_CV.scatter_add_(1, target_K[rows, None], torch.ones_like(grad_CV[:, :1]))
            grad_CV *= (gradients[0][rows] * (scale / temperature)).unsqueeze(1)
            if softcap is not None:
                grad_CV *= 1 - (logits_CV / softcap).square()
            grad_CV = grad_CV.to(hidden_KH.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad_CV @ weight_VH.to(hidden_KH.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_CV.T, hidden_KH[rows])
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``, in place without a temporary of its size if the dtypes are the same."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
