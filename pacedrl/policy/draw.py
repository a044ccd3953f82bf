"""Drawing tokens from logits by inverting the cumulative distribution."""

import torch
from torch import Tensor

BLOCK = 256
"""Tokens in a block. Cumulative sums run over the V/256 sums of blocks, then over the tokens of one block."""


def draw_tokens(
    logits_RV: Tensor, uniform_RM: Tensor, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Draw M tokens per row, one for each uniform number in [0, 1). Returns tokens and log-probabilities, both [R, M].

    Log-probabilities are those of the tempered distribution before top-p truncation. Temperature 0 takes the most
    likely token and its log-probability at temperature 1. ``logits_RV`` is overwritten.
    """
    logits_RV = logits_RV.float()
    if temperature not in (0.0, 1.0):
        logits_RV /= temperature
    weight_RV = logits_RV.sub_(logits_RV.amax(dim=-1, keepdim=True)).exp_()
    if temperature == 0.0:
        token_RM = weight_RV.argmax(dim=-1, keepdim=True).expand_as(uniform_RM)
        total_R1 = weight_RV.sum(dim=-1, keepdim=True)
    else:
        block_RN = block_sums(weight_RV)
        total_R1 = block_RN.sum(dim=-1, keepdim=True).float()
        if top_p < 1.0:
            nucleus_RV = truncate(weight_RV, total_R1, top_p)
            token_RM = invert(nucleus_RV, block_sums(nucleus_RV), uniform_RM)
        else:
            token_RM = invert(weight_RV, block_RN, uniform_RM)
    return token_RM, weight_RV.gather(1, token_RM).log() - total_R1.log()


def block_sums(weight_RV: Tensor) -> Tensor:
    """Sum the weights of each block of BLOCK tokens; the last block may be shorter. Returns float64 [R, blocks]."""
    # Cumulative sums need float64: parallel sums on a GPU are not monotone to the last digit, and a token of weight 0
    # could be drawn from such a gap. The blocks are summed in float32, because a copy of all weights would be slow.
    whole = weight_RV.shape[1] // BLOCK * BLOCK
    sums_RN = weight_RV[:, :whole].view(len(weight_RV), -1, BLOCK).sum(dim=-1)
    if whole < weight_RV.shape[1]:
        sums_RN = torch.cat([sums_RN, weight_RV[:, whole:].sum(dim=-1, keepdim=True)], dim=1)
    return sums_RN.double()


def invert(weight_RV: Tensor, block_RN: Tensor, uniform_RM: Tensor) -> Tensor:
    """Return the first token whose cumulative weight exceeds uniform · total, [R, M]; its weight is never 0."""
    cumulative_RN = block_RN.cumsum(dim=-1)
    threshold_RM = _below(uniform_RM * cumulative_RN[:, -1:], cumulative_RN[:, -1:])
    block_RM = _search(cumulative_RN, threshold_RM)
    before_RM = cumulative_RN.gather(1, block_RM) - block_RN.gather(1, block_RM)
    index_RMC = block_RM[..., None] * BLOCK + torch.arange(BLOCK, device=weight_RV.device)
    beyond_RMC = index_RMC >= weight_RV.shape[1]
    index_RMC = index_RMC.clamp_max(weight_RV.shape[1] - 1)
    inside_RMC = weight_RV.gather(1, index_RMC.flatten(1)).view_as(index_RMC).masked_fill(beyond_RMC, 0.0)
    cumulative_RMC = inside_RMC.cumsum(dim=-1, dtype=torch.float64)
    rest_RM1 = _below((threshold_RM - before_RM)[..., None], cumulative_RMC[..., -1:])
    token_RM = block_RM * BLOCK + _search(cumulative_RMC, rest_RM1).squeeze(-1)
    return token_RM.clamp_max(weight_RV.shape[1] - 1)


def _below(value: Tensor, bound: Tensor) -> Tensor:
    """Clamp ``value``, which rounding may have pushed below 0 or up to the bound, to [0, bound)."""
    return torch.minimum(value.clamp_min(0.0), torch.nextafter(bound, torch.zeros_like(bound)))


def _search(cumulative: Tensor, threshold: Tensor) -> Tensor:
    found = torch.searchsorted(cumulative, threshold, right=True)
    # Comparisons with NaN are false: the index stays valid, and the learner raises its alarm about the NaN.
    return found.clamp_max(cumulative.shape[-1] - 1)


def truncate(weight_RV: Tensor, total_R1: Tensor, top_p: float) -> Tensor:
    """Zero the weights of all tokens but the smallest set of the heaviest ones that reaches ``top_p`` of the total."""
    descending_RV, order_RV = (weight_RV / total_R1).sort(dim=-1, descending=True)
    before_RV = descending_RV.cumsum(dim=-1) - descending_RV
    return weight_RV.masked_fill(torch.zeros_like(order_RV).bool().scatter(1, order_RV, before_RV >= top_p), 0.0)


def uniforms(seed: int, group_size: int, limit: int) -> Tensor:
    """Return the uniform numbers that a group's tokens are drawn from, one per token of a completion: [G, limit]."""
    return torch.rand(group_size, limit, generator=torch.Generator().manual_seed(seed))
