"""Properties of a model that need no download: its chat template, its context, the lengths of prompts."""

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
from pacedrl.policy.chat_template import rendered, thinks
from pacedrl.policy.loading import adapter_base
from pacedrl.policy.policy import Policy
from pacedrl.text import first_line
from pacedrl.types import Prompt

USER = {"role": "user", "content": "What the user says."}
WEIGHTS = "model.safetensors"
LOADED_BYTES = 2**31
"""Models whose weights have at most this size are loaded as a check."""


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    tokenizer: Any
    context: int | None
    gguf_file: str | None
    """The GGUF file of a folder that holds one instead of a checkpoint."""
    where: str
    """The folder or hub name from which transformers loads it."""

    def require_trainable(self) -> None:
        """Raise InputError if training would refuse this model. Large models are left to `pacedrl doctor`."""
        folder = Path(self.where)
        file = folder / WEIGHTS if folder.is_dir() else try_to_load_from_cache(self.where, WEIGHTS)
        if isinstance(file, str | Path) and Path(file).is_file() and Path(file).stat().st_size <= LOADED_BYTES:
            Policy.load(ModelConfig(name=self.where), torch.device("cpu"))

    @property
    def chats(self) -> bool:
        return self.tokenizer.chat_template is not None

    @property
    def thinks(self) -> bool:
        """Whether it reasons before it answers by default."""
        with contextlib.suppress(InputError):  # The check of the rows will refuse their messages and name the row.
            return self.chats and thinks(self.tokenizer, [USER], {})
        return False

    def takes_system_message(self) -> bool:
        """Whether the chat template renders a system message; some refuse it, and some drop it."""
        text = "What the system says."
        chat = [{"role": "system", "content": text}, USER]
        with contextlib.suppress(InputError):
            return text in rendered(self.tokenizer, chat, {})
        return False

    def answer_tokens(self, prompts: Sequence[Prompt]) -> int:
        """Count the tokens of the longest gold answer; 0 if there are none."""
        answers = [str(prompt.answer) for prompt in prompts if prompt.answer is not None]
        ids = self.tokenizer(answers, add_special_tokens=False, verbose=False).input_ids if answers else []
        return max(map(len, ids), default=0)


def local_model(name: str) -> LocalModel | None:
    """The model if it is built in, a folder, or in the hub's cache, else None. Nothing is downloaded.

    Raises InputError for a folder without a model.
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
        raise InputError(f"--model: cannot read a model in the folder '{name}': {first_line(error)}") from None
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return LocalModel(tokenizer, context, options.get("gguf_file"), where)
