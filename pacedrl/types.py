"""What flows through the training loop: prompts, completions and the groups they form.

Shape suffixes used throughout the package: ``_N`` all prompts, ``_P`` prompts of a step, ``_G`` completions a
prompt, ``_B`` sequences, ``_T`` tokens, ``_V`` vocabulary, ``_H`` hidden.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
"""One chat message: ``role``, ``content`` (text, or None beside ``tool_calls``), and what else the row has in it."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """One row of a dataset.

    ``content`` is plain text, tokenised as it is, or chat messages, rendered by the model's chat template.
    ``columns`` holds the row's remaining columns, handed to verifiers. ``task`` names the task it came from.
    ``template_options`` are the variables that the chat template gets beside the messages, ``tools`` among them.
    ``row`` says where the prompt stands, for messages to the user: ``train.jsonl: line 3``.
    """

    key: str
    task: str
    content: str | list[Message]
    answer: Any
    columns: dict[str, Any] = field(default_factory=dict)
    template_options: dict[str, Any] = field(default_factory=dict)
    row: str = ""

    @property
    def question(self) -> str:
        """The text of the last user message: what is asked, also where tools or the assistant spoke after it."""
        if isinstance(self.content, str):
            return self.content
        said = [message for message in self.content if message["content"]]
        asked = [message for message in said if message["role"] == "user"]
        return str((asked or said or [{"content": ""}])[-1]["content"])


@dataclass
class Completion:
    """One sampled answer and what the verifier said of it.

    ``token_ids`` are the sampler's own ids (end-of-sequence included when ``finish_reason == "stop"``) and
    ``logprobs`` their log-probabilities under the behaviour policy, one float a token. ``reward`` is in [0, 1];
    it is None, and ``error`` says why, when the verifier could not judge. An error is never a reward of zero.
    ``parts`` are what is added to it, weighted, when the policy is trained: accuracy is the reward's alone.
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish_reason: FinishReason
    reward: float | None = None
    error: str | None = None
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float | None:
        """Reward and parts; None without a reward."""
        return None if self.reward is None else self.reward + sum(self.parts.values())


@dataclass
class Group:
    """The G completions of one prompt, and the prompt's token ids as the sampler saw them."""

    prompt: Prompt
    prompt_ids: list[int]
    completions: list[Completion]

    @property
    def rewards(self) -> list[float]:
        """Of the completions that were judged."""
        return [c.reward for c in self.completions if c.reward is not None]

    @property
    def observed_accuracy(self) -> float | None:
        """Mean reward of the completions that were judged; None when none was."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


def prompt_key(content: str | list[Message], answer: Any, template_options: dict[str, Any] | None = None) -> str:
    """A 16-hex-digit hash of what is asked and what counts as right: stable under shuffling and dataset growth."""
    # A checkpoint names its prompts by these keys, so a prompt without template options keeps the key it always had.
    parts = [content, answer, template_options] if template_options else [content, answer]
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
