"""The thoughts that a model may write before its answer."""

from __future__ import annotations

THINK, END_OF_THINK = "<think>", "</think>"
"""Between these a thinking model reasons before it answers."""


def after_thoughts(text: str) -> str:
    """The answer in a completion: what follows the last ``</think>``; nothing if the thoughts were not ended.

    A completion without these tags is an answer as a whole.
    """
    _, end, answer = text.rpartition(END_OF_THINK)
    return answer if end or THINK not in text else ""
