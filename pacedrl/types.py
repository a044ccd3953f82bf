"""The data of the training loop: prompts, completions, and groups of completions of one prompt.

Shape suffixes used throughout the package: ``_N`` all prompts, ``_P`` prompts of a step, ``_G`` completions per
prompt, ``_B`` sequences, ``_T`` tokens, ``_V`` vocabulary, ``_H`` hidden units.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, Any]
"""One chat message: ``role``, ``content`` (text, or None beside ``tool_calls``), and any other fields of the row."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """One row of a dataset.

    ``content`` is plain text, which is tokenised unchanged, or chat messages, which the chat template renders.
    ``columns`` holds the row's other columns, which verifiers may read. ``task`` names the task it came from.
    ``template_options`` are variables for the chat template beside the messages, such as ``tools``.
    ``row`` locates the prompt in messages to the user, for example ``train.jsonl: line 3``.
    ``token_ids`` are filled in when the prompts of a run are encoded.
    """

    key: str
    task: str
    content: str | list[Message]
    answer: Any
    columns: dict[str, Any] = field(default_factory=dict)
    template_options: dict[str, Any] = field(default_factory=dict)
    row: str = ""
    token_ids: Sequence[int] = ()

    @property
    def question(self) -> str:
        """The text of the last user message, even if messages of tools or the assistant follow it."""
        if isinstance(self.content, str):
            return self.content
        said = [message for message in self.content if message["content"]]
        asked = [message for message in said if message["role"] == "user"]
        return str((asked or said or [{"content": ""}])[-1]["content"])


@dataclass
class Completion:
    """One sampled sequence. The sampler makes it; each stage of a training step fills in what it knows.

    - The sampler: ``token_ids`` are its own ids (the end token included when ``finish_reason == "stop"``), ``logprobs``
      their log-probabilities under the behaviour policy, one float per token.
    - The verifier: ``reward`` lies in [0, 1]; it is None when the verifier could not judge, and ``error`` says why. An
      error is never a reward of zero. ``parts`` are weighted additions that shape what the policy is trained on;
      accuracy is estimated from the reward alone.
    - Its group: ``key`` and ``prompt_ids``, the key and the token ids of the prompt.
    - The objective: ``anchor_logprobs``, the log-probability of each token under μ (None: the trainer's own policy at
      the start of the step); ``reference_logprobs``, those of the initial policy, if the objective reads them;
      ``advantage``, what the objective makes of the reward, such as r/β − log Z(x).
    - The learner: ``log_ratio``, Σ_t (log π_θ − log μ)_t when the sequence was last trained on. It is None if the
      sequence was not trained on, and 0 if the optimiser step was skipped because its gradient was not finite.

    A completion from the replay buffer is ``replayed``; its ``logprobs`` are those from when it was sampled.
    """

    token_ids: list[int]
    logprobs: list[float]
    text: str = ""
    finish_reason: FinishReason = "stop"
    reward: float | None = None
    error: str | None = None
    parts: dict[str, float] = field(default_factory=dict)
    key: str = ""
    prompt_ids: Sequence[int] = ()
    replayed: bool = False
    anchor_logprobs: Sequence[float] | None = None
    reference_logprobs: Sequence[float] | None = None
    advantage: float = 0.0
    log_ratio: float | None = None

    @property
    def total(self) -> float | None:
        """The reward plus its parts; None without a reward."""
        return None if self.reward is None else self.reward + sum(self.parts.values())

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.token_ids)


@dataclass
class Group:
    """The completions of one prompt.

    ``dropped`` is the reason why a gate keeps the group out of the update; None if it is trained on.
    ``accuracy_estimate`` is the prompt's from before its rewards were known; NaN without an estimator.
    """

    prompt: Prompt
    completions: list[Completion]
    dropped: str | None = None
    accuracy_estimate: float = field(default=math.nan, compare=False)

    def __post_init__(self) -> None:
        for completion in self.completions:
            completion.key, completion.prompt_ids = self.prompt.key, self.prompt.token_ids

    @property
    def rewards(self) -> list[float]:
        """Rewards of the completions that were judged."""
        return [c.reward for c in self.completions if c.reward is not None]

    @property
    def observed_accuracy(self) -> float | None:
        """Mean reward of the completions that were judged; None if none was."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


def prompt_key(content: str | list[Message], answer: Any, template_options: dict[str, Any] | None = None) -> str:
    """A 16-hex-digit hash of question and answer: it does not change when rows are shuffled or added."""
    # Checkpoints identify prompts by these keys, so a prompt without template options must keep its old key.
    parts = [content, answer, template_options] if template_options else [content, answer]
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]
