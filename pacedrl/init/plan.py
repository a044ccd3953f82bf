"""What was decided about a run, and how its prompts are put to the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pacedrl.config import Config
from pacedrl.init.data import Data, Settings
from pacedrl.init.model import KnownModel
from pacedrl.init.verifier import Choice

BOXED = r"Think step by step, and put the final answer in \boxed{}."
BARE = "Answer with the final answer alone, and nothing else."
TAGGED = "Think step by step, and give the final answer alone between <answer> and </answer>."
SYSTEM_PROMPTS = {"math": BOXED, "exact": BARE} | dict.fromkeys(("gym", "countdown", "knights_knaves"), TAGGED)
"""What a chat model is told, so that the verifier finds its answer."""


@dataclass(frozen=True)
class Plan:
    """What was decided about a run."""

    out: Path
    model: str
    known: KnownModel | None
    data: Data
    choice: Choice
    config: Config
    """The recipe's settings, without anything that was decided here."""

    @property
    def makes_chats(self) -> bool:
        """Whether the rows' texts are to be sent as a user's messages."""
        return self.known is not None and self.known.chats and not self.data.survey.chat

    @property
    def is_chat(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.data.survey.chat or self.makes_chats

    @property
    def thinks(self) -> bool:
        """Whether the model may reason before it answers."""
        return self.is_chat and self.known is not None and self.known.thinks

    @property
    def can_stop_thinking(self) -> bool:
        """Whether the chat template can be told that it should not."""
        return self.is_chat and self.known is not None and self.known.can_stop_thinking


def task_settings(plan: Plan, task: Settings) -> Settings:
    """A task's source with its verifier, and how its prompts are put to the model."""
    settings = {**task} | _instruction(plan, task)
    if "prompt_template" in settings and "prompt" in settings.get("columns", {}):
        others = {name: column for name, column in settings["columns"].items() if name != "prompt"}
        settings = {name: value for name, value in settings.items() if name != "columns"}
        settings |= {"columns": others} if others else {}
    if plan.makes_chats:
        settings["chat"] = True
    settings["verifier"] = plan.choice.verifier
    return settings | ({"verifier_options": plan.choice.options} if plan.choice.options else {})


def _instruction(plan: Plan, task: Settings) -> Settings:
    """How the model is told to answer: by a system message, or below the question if the template takes none."""
    text = SYSTEM_PROMPTS.get(plan.choice.verifier)
    if text is None or plan.data.survey.told or not plan.is_chat:
        return {}
    if plan.known is None or plan.known.takes_system_message():
        return {"system_prompt": text}
    same = task["source"] == plan.data.train["source"]
    question = _field(plan.data.survey.columns.prompt if same else plan.data.held_out_prompt)
    if plan.data.survey.chat or question is None:
        return {}
    return {"prompt_template": f"{question}\n\n{text}".replace("\\boxed{}", "\\boxed{{}}")}


def _field(path: str | None) -> str | None:
    """A column, or a path into one, as a field of a prompt template; None for names that such a field cannot have."""
    if path is None or re.search(r"[{}\[\]!:]", path):
        return None
    column, *keys = path.split(".")
    return "{" + column + "".join(f"[{key}]" for key in keys) + "}"


def cautions(plan: Plan) -> list[str]:
    """What the user should know about how this model and this verifier go together."""
    found = [plan.choice.caution] if plan.choice.caution else []
    wanted = plan.choice.verifier in SYSTEM_PROMPTS and plan.is_chat and not plan.data.survey.told
    if wanted and not _instruction(plan, plan.data.train):
        found.append(
            "the model's chat template takes no system message, so nothing tells the model how to answer; say it in "
            "the rows' own messages"
        )
    return found
