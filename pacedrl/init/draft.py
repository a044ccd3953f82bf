"""The decisions about a configuration: how prompts reach the model, and the sizes of a run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from pacedrl.config import Config
from pacedrl.errors import InputError
from pacedrl.init.data import Data, TaskSettings
from pacedrl.init.model import LocalModel
from pacedrl.init.verifier import Choice
from pacedrl.policy.chat_template import prompt_ids
from pacedrl.types import Prompt

BOXED = r"Think step by step, and put the final answer in \boxed{}."
BARE = "Answer with the final answer alone, and nothing else."
TAGGED = "Think step by step, and give the final answer alone between <answer> and </answer>."
SYSTEM_PROMPTS = {"math": BOXED, "exact": BARE} | dict.fromkeys(("gym", "countdown", "knights_knaves"), TAGGED)
"""Instructions for a chat model, so that the verifier finds its answer."""

Machine = Literal["tiny", "cpu", "gpu"]
"""The hardware or model that determines the size of a run: the tiny model, a CPU or a GPU."""
POOL_FACTOR = 4
"""Minimum number of training prompts per prompt of a step; with fewer, there is nothing to select from."""
ROUND_TO = 16
"""Token limits are rounded up to multiples of this."""
THINKING: dict[Machine, int] = {"tiny": 256, "cpu": 512, "gpu": 4096}
"""``max_new_tokens`` for a model that reasons before it answers."""


@dataclass(frozen=True)
class Draft:
    """The decisions about a configuration, except for its sizes."""

    out: Path
    model: str
    local: LocalModel | None
    data: Data
    choice: Choice
    recipe: Config
    """The recipe's own configuration."""

    @property
    def makes_chats(self) -> bool:
        """Whether the rows hold plain text that is sent as a user message."""
        return self.local is not None and self.local.chats and not self.data.survey.chat

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.data.survey.chat or self.makes_chats


def task_settings(draft: Draft, task: TaskSettings) -> TaskSettings:
    """Complete a task's settings with its verifier and with how its prompts reach the model."""
    settings = {**task} | _instruction(draft, task)
    if "prompt_template" in settings:  # It replaces the prompt's column.
        columns = {name: column for name, column in settings.pop("columns", {}).items() if name != "prompt"}
        settings |= {"columns": columns} if columns else {}
    if draft.makes_chats:
        settings["chat"] = True
    return settings | {"verifier": draft.choice.verifier}


def _instruction(draft: Draft, task: TaskSettings) -> TaskSettings:
    """How the model is told to answer: in a system message, or below the question if the template takes none."""
    text = SYSTEM_PROMPTS.get(draft.choice.verifier)
    if text is None or draft.data.survey.instructed or not draft.is_chat:
        return {}
    if draft.local is None or draft.local.takes_system_message():
        return {"system_prompt": text}
    same = task["source"] == draft.data.train["source"]
    question = _field(draft.data.survey.columns.prompt if same else draft.data.held_out_prompt)
    if draft.data.survey.chat or question is None:
        return {}
    return {"prompt_template": f"{question}\n\n{text}".replace("\\boxed{}", "\\boxed{{}}")}


def _field(path: str | None) -> str | None:
    """Convert a column, or a path into one, to a field of a prompt template; None if a field cannot name it."""
    if path is None or re.search(r"[{}\[\]!:]", path):
        return None
    column, *keys = path.split(".")
    return "{" + column + "".join(f"[{key}]" for key in keys) + "}"


def cautions(draft: Draft) -> list[str]:
    """Warnings about the combination of model, data and verifier."""
    found = [draft.choice.caution] if draft.choice.caution else []
    needed = draft.choice.verifier in SYSTEM_PROMPTS and draft.is_chat and not draft.data.survey.instructed
    if needed and not _instruction(draft, draft.data.train):
        found.append(
            "the model's chat template takes no system message, so nothing tells the model how to answer; say it in "
            "the rows' own messages"
        )
    return found


@dataclass(frozen=True)
class Sizes:
    """Sizes of a first run. ``overlong`` is the number of prompts that do not fit and are dropped."""

    machine: Machine
    steps: int
    prompts_per_step: int
    max_prompt_tokens: int
    max_new_tokens: int
    learning_rate: float
    eval_every: int
    eval_samples: int
    held_out: int
    overlong: int = 0


_START: dict[Machine, Sizes] = {
    "tiny": Sizes("tiny", 100, 32, 64, 16, 2e-4, 25, 8, 200),
    "cpu": Sizes("cpu", 30, 8, 512, 128, 1e-5, 10, 4, 16),
    "gpu": Sizes("gpu", 150, 128, 1024, 1024, 1e-6, 25, 8, 200),
}


def sizes(draft: Draft, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> Sizes:
    """Sizes for this machine, model and data. Prompts and answers are measured only if the model is on this machine.

    Raises InputError if no prompt fits into the model's context.
    """
    machine: Machine = "tiny" if draft.model == "tiny" else "gpu" if torch.cuda.is_available() else "cpu"
    start, model = _START[machine], draft.local
    per_step = min(start.prompts_per_step, max(1, len(train) // max(POOL_FACTOR, draft.recipe.gate.selection_factor)))
    if model is None:
        return replace(start, prompts_per_step=per_step)
    prompts = [*train, *held_out]
    new_tokens = start.max_new_tokens
    if model.thinks:
        new_tokens = THINKING[machine]
    elif draft.choice.verifier == "exact" or machine == "tiny":  # The completion is the answer alone.
        new_tokens = min(_round_up(model.answer_tokens(prompts) + ROUND_TO // 2), max(new_tokens, 256))
    lengths = [len(prompt_ids(model.tokenizer, prompt)) for prompt in prompts]
    limit = max(start.max_prompt_tokens, _round_up(max(lengths)))
    if model.context is not None:
        new_tokens = min(new_tokens, model.context // (2 if model.thinks else 4))
        limit = min(limit, model.context - new_tokens)
    overlong = sum(length > limit for length in lengths)
    if overlong == len(lengths):
        raise InputError(
            f"all {len(lengths)} prompts are longer than the model's context allows ({min(lengths)} tokens or more, of "
            f"{model.context}); choose a model with a longer context"
        )
    return replace(
        start, prompts_per_step=per_step, max_prompt_tokens=limit, max_new_tokens=new_tokens, overlong=overlong
    )


def _round_up(tokens: int) -> int:
    return -(-tokens // ROUND_TO) * ROUND_TO
