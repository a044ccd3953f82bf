"""What is known of a model without downloading anything: its tokenizer and how long its texts may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacedrl.assets import TINY_MODEL
from pacedrl.errors import InputError
from pacedrl.policy.loading import adapter_base
from pacedrl.policy.policy import token_ids
from pacedrl.types import Prompt


@dataclass(frozen=True)
class KnownModel:
    """A model that is on this machine. ``gguf_file`` is the one that its folder holds in place of a checkpoint."""

    tokenizer: Any
    context: int | None
    gguf_file: str | None

    @property
    def chats(self) -> bool:
        return self.tokenizer.chat_template is not None

    def longest(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt. InputError for messages where there is no chat template."""
        return [len(token_ids(self.tokenizer, prompt.content)) for prompt in prompts]

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
    return KnownModel(tokenizer, context, options.get("gguf_file"))
