"""The answer a completion states, for counting different ones."""

from __future__ import annotations

import re

from pacedrl.tasks.answers import last_boxed

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def stated_answer(verifier: str, text: str) -> str:
    r"""The last ``\boxed{}``, else what follows the last ``####``, else (math, numeric) the last number, else all.

    Two spellings of one value count as two answers: this measures diversity, it does not judge.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    if "####" in text:
        return text.rpartition("####")[2].strip()
    numbers = _NUMBER.findall(text) if verifier in ("math", "numeric") else []
    return str(numbers[-1]) if numbers else text.strip()
