"""Where completions end: at certain tokens, and as soon as their text contains certain strings."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pacedrl.types import Completion, FinishReason, Message

SENTINEL = "Sentinel-2718"
"""An assistant's message that is looked for in what a chat template writes."""
SLACK = 8
"""Tokens that are decoded beyond a stop string's own bytes: the first ones may begin inside a character."""


class Ends:
    """The tokens and strings at which a completion ends, whichever comes first.

    The token ids of a completion include the token that ended it: an end token, or the token that completed a string.
    Its text stops before the end token or the string. Everything else that was drawn is in the text, special tokens
    such as ``<think>`` included.
    """

    def __init__(
        self, token_ids: Collection[int], strings: Sequence[str], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.token_ids = sorted(token_ids)
        self.strings = tuple(strings)
        self._decode = decode
        # No token that writes text writes less than a byte, so that no more tokens can hold the string.
        self._tail = max((len(text.encode()) for text in strings), default=0) + SLACK

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.strings)

    def reached(self, token_ids: Sequence[int]) -> bool:
        """Whether a completion that had not ended ends with the last of these tokens."""
        if token_ids[-1] in self.token_ids:
            return True
        return bool(self.strings) and self._holds(token_ids[-self._tail :]) and self._holds(token_ids)

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """The completion up to its end. Tokens that were drawn after a stop string are dropped."""
        count = len(token_ids)
        if self.strings and self._holds(token_ids):
            # Whatever is longer than a completion that holds a string holds it, too.
            count = bisect_left(range(1, count), True, key=lambda n: self._holds(token_ids[:n])) + 1
        ids = list(token_ids[:count])
        at_token = ids[-1] in self.token_ids
        text = self._decode(ids[:-1] if at_token else ids)
        places = [text.find(string) for string in self.strings if string in text]
        reason: FinishReason = "stop" if at_token or places else "length"
        return Completion(ids, list(logprobs[:count]), text[: min(places)] if places else text, reason)

    def _holds(self, token_ids: Sequence[int]) -> bool:
        text = self._decode(token_ids)
        return any(string in text for string in self.strings)


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that the model's generation settings, its configuration and the tokenizer call ends of a sequence."""
    named = (
        model.generation_config.eos_token_id,
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    return sorted({i for ids in named for i in as_ids(ids)})


def as_ids(named: int | Sequence[int] | None) -> list[int]:
    """The ids that a configuration names: none, one or several."""
    if named is None:
        return []
    return [int(i) for i in named] if isinstance(named, Sequence) else [int(named)]


def turn_end(tokenizer: Any) -> str | None:
    """What the chat template writes at the end of the assistant's turn; None if it writes nothing, or there is none.

    It is the token that follows the assistant's text, or all of the text that follows if no token does.
    """
    if not tokenizer.chat_template:
        return None
    question: list[Message] = [{"role": "user", "content": "Hi"}]
    answered = [*question, {"role": "assistant", "content": SENTINEL}]
    try:
        prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        before, _, after = str(tokenizer.apply_chat_template(answered, tokenize=False)).partition(SENTINEL)
        if not after.strip():  # some templates end a turn only when another follows
            followed = [*answered, {"role": "user", "content": SENTINEL}]
            after = str(tokenizer.apply_chat_template(followed, tokenize=False)).split(SENTINEL)[1]
            return next(iter(_leading_tokens(tokenizer, after)), None)
    except Exception:  # a template is a program of the model's author; one may refuse such a conversation
        return None
    tokens = _leading_tokens(tokenizer, after)
    if not tokens:
        return after.strip()
    # A template that opens the assistant's text with something, such as a tag, closes that first.
    return tokens[-1] if before.removeprefix(prompt).strip() else tokens[0]


def _leading_tokens(tokenizer: Any, text: str) -> list[str]:
    """The tokens that the text begins with, with nothing but space between them."""
    longest_first = sorted(added_tokens(tokenizer), key=len, reverse=True)
    beginning = re.match(rf"(\s*(?:{'|'.join(map(re.escape, longest_first))}))*", text) if longest_first else None
    return re.findall("|".join(map(re.escape, longest_first)), beginning[0]) if beginning else []


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that are written as a whole, whatever surrounds them, and their ids."""
    return {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}


def split_stops(tokenizer: Any, stops: Sequence[str]) -> tuple[list[int], list[str]]:
    """Which of the strings are tokens of their own, as ids, and the rest."""
    tokens = added_tokens(tokenizer)
    return [tokens[stop] for stop in stops if stop in tokens], [stop for stop in stops if stop not in tokens]
