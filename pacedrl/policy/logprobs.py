"""Logits from hidden states, and log-probabilities of tokens without holding all [tokens, vocabulary] logits."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**24, "cuda": 2**27}
"""Number of logits held at once, by the type of device.

On a CPU they take 64 MiB in float32. A GPU also reads the whole head, and reads and writes its gradient, once a chunk,
which takes as long as multiplying some hundreds of rows. 512 MiB hold 880 rows of a vocabulary of 152,000, and with
their temporaries no more than 2 GiB.
"""


@dataclass(frozen=True)
class Head:
    """Turns hidden states into logits: ``softcap(scale · (h Wᵀ + b))`` with softcap(z) = c·tanh(z/c) if c is given.

    h and W are rounded to ``dtype`` before they are multiplied; products are summed in float32.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    dtype: torch.dtype = torch.float32

    def logits(self, hidden_KH: Tensor) -> Tensor:
        """Compute float32 logits [K, V] of hidden states [K, H]."""
        logits_KV = linear(hidden_KH, self.weight_VH, self.bias_V, self.dtype)
        logits_KV = logits_KV * self.scale if self.scale != 1.0 else logits_KV
        return logits_KV if self.softcap is None else self.softcap * torch.tanh(logits_KV / self.softcap)


class OutputLayer(torch.nn.Linear):
    """The output layer of a model that samples and trains: under autocast its logits are those of `Head`, float32.

    Autocast alone would round logits to bfloat16, which moves log-probabilities by thousandths of a nat, so the sampler
    would draw from another policy than the one trained. Without autocast it is a usual linear layer. Its logits under
    autocast have no gradient on a GPU, because `torch.mm` with ``out_dtype`` has none; training calls `token_logprobs`.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute logits [..., V] of hidden states [..., H]."""
        kind = hidden.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(hidden)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            logits_KV = linear(hidden.flatten(end_dim=-2), self.weight, self.bias, dtype)
        return logits_KV.view(*hidden.shape[:-1], logits_KV.shape[-1])


def linear(hidden_KH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Compute h Wᵀ + b in float32, [K, V], with h and W rounded to ``dtype``. Call it without autocast."""
    bias_V = None if bias_V is None else bias_V.float()
    if dtype == torch.float32:
        return torch.nn.functional.linear(hidden_KH.float(), weight_VH.float(), bias_V)
    logits_KV = product(hidden_KH.to(dtype), weight_VH.to(dtype).T)
    return logits_KV if bias_V is None else logits_KV + bias_V


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply [..., A, B] by [..., B, C], with ``left`` rounded to the type of ``right``: float32 [..., A, C].

    Products are summed in float32. A GPU multiplies bfloat16 by `torch.mm` or `torch.bmm` with ``out_dtype``, which
    torch has since 2.8 for GPUs alone, and which autocast leaves alone. A CPU multiplies the same numbers in float32,
    where the product of two bfloat16 numbers is exact.
    """
    if right.dtype == torch.float32:
        return left @ right
    left = left.to(right.dtype)
    if not right.is_cuda:
        with torch.autocast(right.device.type, enabled=False):
            return left.float() @ right.float()
    if right.ndim == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    flat = torch.bmm(left.flatten(end_dim=-3), right.flatten(end_dim=-3), out_dtype=torch.float32)
    return flat.view(*right.shape[:-2], *flat.shape[-2:])


def token_logprobs(hidden_KH: Tensor, head: Head, target_K: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute log softmax(logits/temperature)[target] and that distribution's entropy, both float32 [K], in nats.

    Logits are computed for some rows at a time, and again in the backward pass, so memory grows with K·H instead of
    K·V. Gradients flow through the log-probabilities into the hidden states and the head; the entropy has no gradient.
    In the backward pass, too, what is multiplied has the head's ``dtype``, and the gradient of the weight is summed in
    float32. Call it without autocast.
    """
    output: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_KH, head.weight_VH, head.bias_V, target_K, head.scale, head.softcap, head.dtype, temperature
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
        dtype: torch.dtype,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        rounded_KH = hidden_KH.to(dtype)
        head = Head(weight_VH.to(dtype), bias_V, scale, softcap, dtype)
        logprob_K = torch.empty(len(hidden_KH), dtype=torch.float32, device=hidden_KH.device)
        entropy_K = torch.empty_like(logprob_K)
        for rows in _chunks(len(hidden_KH), len(weight_VH), hidden_KH.device):
            logprob_CV = torch.log_softmax(head.logits(rounded_KH[rows]).div_(temperature), dim=-1)
            logprob_K[rows] = logprob_CV.gather(1, target_K[rows, None]).squeeze(1)
            entropy_K[rows] = -torch.linalg.vecdot(logprob_CV.exp(), logprob_CV.clamp_min_(torch.finfo().min))
        ctx.save_for_backward(rounded_KH, weight_VH, bias_V, target_K)
        ctx.settings = (scale, softcap, temperature, hidden_KH.dtype)
        ctx.mark_non_differentiable(entropy_K)
        return logprob_K, entropy_K

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rounded_KH, weight_VH, bias_V, target_K = ctx.saved_tensors
        scale, softcap, temperature, hidden_dtype = ctx.settings
        dtype = rounded_KH.dtype
        head = Head(weight_VH.to(dtype), bias_V, scale, softcap, dtype)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(rounded_KH, dtype=hidden_dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias else None
        for rows in _chunks(len(rounded_KH), len(weight_VH), rounded_KH.device):
            # d log p[target] / d logits = (onehot − p) / temperature, then back through softcap and scale.
            logits_CV = head.logits(rounded_KH[rows])
            # The derivative of the softcap needs the logits unchanged.
            scaled_CV = logits_CV.div_(temperature) if softcap is None else logits_CV / temperature
            grad_CV = torch.softmax(scaled_CV, dim=-1).neg_()
            grad_CV.scatter_add_(1, target_K[rows, None], torch.ones_like(grad_CV[:, :1]))
            grad_CV *= (gradients[0][rows] * (scale / temperature)).unsqueeze(1)
            if softcap is not None:
                grad_CV *= 1 - (logits_CV / softcap).square()
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
            grad_CV = grad_CV.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(grad_CV, head.weight_VH).to(hidden_dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_CV.T, rounded_KH[rows])
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VH.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to the float32 ``total``, in place, without a temporary of its size."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
        return
    for rows in _chunks(len(total), total.shape[1], total.device):
        total[rows] += product(left[rows], right)


def _chunks(rows: int, width: int, device: torch.device) -> list[slice]:
    """Cut rows of ``width`` numbers so that no chunk has more than `CHUNK_ELEMENTS`, or a single row."""
    size = max(1, CHUNK_ELEMENTS[device.type] // width)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
