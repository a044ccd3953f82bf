"""How much of everything: prompts a step, tokens, steps, for the model, the data and this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.init.model import KnownModel
from pacedrl.types import Prompt

Kind = Literal["tiny", "cpu", "gpu"]
PROMPTS_A_PROMPT = 4
"""Prompts there should be for each that a step trains on: else there is nothing to select from."""
STEP = 16
"""Limits on tokens are multiples of it."""
THINKING: dict[Kind, int] = {"tiny": 256, "cpu": 512, "gpu": 4096}
"""New tokens for a model that reasons before it answers."""


@dataclass(frozen=True)
class Sizes:
    """Settings that a first run can be made with; ``overlong`` prompts are more than fit, and dropped."""

    kind: Kind
    steps: int
    prompts_per_step: int
    max_prompt_tokens: int
    max_new_tokens: int
    learning_rate: float
    eval_every: int
    eval_samples: int
    held_out: int
    overlong: int = 0


_START: dict[Kind, Sizes] = {
    "tiny": Sizes("tiny", 100, 32, 64, 16, 2e-4, 25, 8, 200),
    "cpu": Sizes("cpu", 30, 8, 512, 128, 1e-5, 10, 4, 16),
    "gpu": Sizes("gpu", 150, 128, 1024, 1024, 1e-6, 25, 8, 200),
}


def sizes(
    kind: Kind,
    config: Config,
    model: KnownModel | None,
    train: Sequence[Prompt],
    held_out: Sequence[Prompt],
    verifier: str,
) -> Sizes:
    """Sizes for a run of ``config``'s recipe; prompts and answers are measured in tokens if the model is known.

    Raises InputError when no prompt fits into the model's context.
    """
    start = _START[kind]
    oversample = config.gate.selection_factor
    per_step = min(start.prompts_per_step, max(1, len(train) // max(PROMPTS_A_PROMPT, oversample)))
    if model is None:
        return replace(start, prompts_per_step=per_step)
    prompts = [*train, *held_out]
    answer = start.max_new_tokens
    if model.thinks:
        answer = THINKING[kind]
    elif verifier == "exact" or kind == "tiny":  # nothing but the answer is expected
        answer = min(_rounded(model.answer_tokens(prompts) + STEP // 2), max(answer, 256))
    lengths = model.longest(prompts)
    limit = max(start.max_prompt_tokens, _rounded(max(lengths)))
    if model.context is not None:
        answer = min(answer, model.context // (2 if model.thinks else 4))
        limit = min(limit, model.context - answer)
    overlong = sum(length > limit for length in lengths)
    if overlong == len(lengths):
        raise InputError(
            f"all {len(lengths)} prompts are longer than the model's context allows ({min(lengths)} tokens or more, of "
            f"{model.context}); choose a model with a longer context"
        )
    return replace(start, prompts_per_step=per_step, max_prompt_tokens=limit, max_new_tokens=answer, overlong=overlong)


def _rounded(tokens: int) -> int:
    return -(-tokens // STEP) * STEP
