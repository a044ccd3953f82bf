"""Where completions end: at certain tokens, and as soon as their text contains certain strings."""

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pacedrl.types import Completion, FinishReason, Message

SENTINEL = "Sentinel-2718"
"""The text of an assistant's message that is searched for in a chat template's output."""
SLACK = 8
"""Tokens decoded in addition to a stop string's bytes, because the first ones may begin inside a character."""


class Ends:
    """The tokens and strings at which a completion ends, whichever comes first.

    A completion's token ids include the token that ended it: an end token, or the token that completed a string. Its
    text stops before the end token or the string, and includes special tokens such as ``<think>``.
    """

    def __init__(
        self, token_ids: Collection[int], strings: Sequence[str], decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.token_ids = sorted(token_ids)
        self.strings = tuple(strings)
        self._decode = decode
        # A token that writes text writes at least one byte, so this many tokens cover the longest string.
        self._tail = max((len(text.encode()) for text in strings), default=0) + SLACK

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.strings)

    def reached(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of these tokens ends a completion that had not ended before it."""
        if token_ids[-1] in self.token_ids:
            return True
        return bool(self.strings) and self._holds(token_ids[-self._tail :]) and self._holds(token_ids)

    def completion(self, token_ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """Return the completion up to its end. Tokens sampled after a stop string are dropped."""
        count = len(token_ids)
        if self.strings and self._holds(token_ids):
            # Longer prefixes hold the string if a shorter one does, so a binary search finds the shortest.
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
    """Return the end-of-sequence ids of the model's generation settings, its configuration and the tokenizer."""
    named = (
        model.generation_config.eos_token_id,
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    )
    return sorted({i for ids in named for i in as_ids(ids)})


def as_ids(named: int | Sequence[int] | None) -> list[int]:
    """Return the ids that a configuration entry names: none, one or several."""
    if named is None:
        return []
    return [int(i) for i in named] if isinstance(named, Sequence) else [int(named)]


def turn_end(tokenizer: Any) -> str | None:
    """Return what the chat template writes at the end of the assistant's turn; None if nothing, or without a template.

    This is the token that follows the assistant's text, or all text that follows if it does not begin with a token.
    """
    if not tokenizer.chat_template:
        return None
    question: list[Message] = [{"role": "user", "content": "Hi"}]
    answered = [*question, {"role": "assistant", "content": SENTINEL}]
    try:
        prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        before, _, after = str(tokenizer.apply_chat_template(answered, tokenize=False)).partition(SENTINEL)
        if not after.strip():  # some templates end a turn only if another follows
            followed = [*answered, {"role": "user", "content": SENTINEL}]
            after = str(tokenizer.apply_chat_template(followed, tokenize=False)).split(SENTINEL)[1]
            return next(iter(_leading_tokens(tokenizer, after)), None)
    except Exception:  # a template is a program, which may refuse this conversation
        return None
    tokens = _leading_tokens(tokenizer, after)
    if not tokens:
        return after.strip()
    # A template that opens something before the assistant's text, such as a tag, closes it first.
    return tokens[-1] if before.removeprefix(prompt).strip() else tokens[0]


def _leading_tokens(tokenizer: Any, text: str) -> list[str]:
    """Return the added tokens at the beginning of the text, which only spaces separate."""
    longest_first = sorted(added_tokens(tokenizer), key=len, reverse=True)
    beginning = re.match(rf"(\s*(?:{'|'.join(map(re.escape, longest_first))}))*", text) if longest_first else None
    return re.findall("|".join(map(re.escape, longest_first)), beginning[0]) if beginning else []


def added_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that the tokenizer never splits, whatever surrounds them, with their ids."""
    return {str(token): int(i) for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}


def split_stops(tokenizer: Any, stops: Sequence[str]) -> tuple[list[int], list[str]]:
    """Split stop strings into the ids of those that are single added tokens, and the other strings."""
    tokens = added_tokens(tokenizer)
    return [tokens[stop] for stop in stops if stop in tokens], [stop for stop in stops if stop not in tokens]
