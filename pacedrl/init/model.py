"""What is known of a model without downloading anything: its tokenizer and how long its texts may be."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from pacedrl.assets import TINY_MODEL
from pacedrl.config import ModelConfig
from pacedrl.errors import InputError
from pacedrl.policy.chat_template import has_thinking_switch, prompt_ids, rendered, thinks
from pacedrl.policy.loading import adapter_base
from pacedrl.policy.policy import Policy
from pacedrl.types import Prompt

USER = {"role": "user", "content": "What the user says."}
WEIGHTS = "model.safetensors"
QUICKLY_LOADED = 2**31
"""Models with at most this many bytes of weights are loaded and tried."""


@dataclass(frozen=True)
class KnownModel:
    """A model that is on this machine. ``gguf_file`` is the one that its folder holds in place of a checkpoint."""

    tokenizer: Any
    context: int | None
    gguf_file: str | None
    where: str
    """The folder or hub name that transformers loads it from."""

    def require_trainable(self) -> None:
        """Raise InputError where training would refuse to start. Large models are left to `pacedrl doctor`."""
        folder = Path(self.where)
        file = folder / WEIGHTS if folder.is_dir() else try_to_load_from_cache(self.where, WEIGHTS)
        if isinstance(file, str | Path) and Path(file).is_file() and Path(file).stat().st_size <= QUICKLY_LOADED:
            Policy.load(ModelConfig(name=self.where), torch.device("cpu"))

    @property
    def chats(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def thinks(self) -> bool:
        """Whether it reasons before it answers unless it is told otherwise."""
        with contextlib.suppress(InputError):  # the rows' own messages will be refused, and the message name the row
            return self.chats and thinks(self.tokenizer, [USER], {})
        return False

    @property
    def can_stop_thinking(self) -> bool:
        """Whether it thinks, and ``enable_thinking: false`` turns that off."""
        return self.thinks and has_thinking_switch(self.tokenizer)

    def takes_system_message(self) -> bool:
        """Whether the chat template puts a system message before the model, which some refuse and some leave out."""
        text = "What the system says."
        chat = [{"role": "system", "content": text}, USER]
        with contextlib.suppress(InputError):
            return text in rendered(self.tokenizer, chat, {})
        return False

    def longest(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt. InputError where there is no chat template for messages, or it refuses them."""
        return [len(prompt_ids(self.tokenizer, prompt)) for prompt in prompts]

    def answer_tokens(self, prompts: Sequence[Prompt]) -> int:
        """Tokens of the longest gold answer, 0 without any."""
        answers = [str(prompt.answer) for prompt in prompts if prompt.answer is not None]
        ids = self.tokenizer(answers, add_special_tokens=False, verbose=False).input_ids if answers else []
        return max(map(len, ids), default=0)


def known_model(name: str) -> KnownModel | None:
    """The model if it is built in, a folder, or in the hub's cache; else None: nothing is downloaded.

    Raises InputError for a folder that holds no model.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = TINY_MODEL if name == "tiny" else Path(name)
    options: dict[str, Any] = {"local_files_only": True}
    if folder.is_dir():
        gguf = sorted(path.name for path in folder.glob("*.gguf"))
        if gguf and not (folder / "config.json").exists():
            options["gguf_file"] = gguf[0]
    elif name.startswith((".", "/", "~")):
        raise InputError(f"--model: there is no folder '{name}'; give a folder, a hub name, or tiny")
    where = str(folder) if folder.is_dir() else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
        base = adapter_base(where) if folder.is_dir() else None
        config = AutoConfig.from_pretrained(base or where, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if not folder.is_dir():
            return None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--model: cannot read a model in the folder '{name}': {reason}") from None
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return KnownModel(tokenizer, context, options.get("gguf_file"), where)
