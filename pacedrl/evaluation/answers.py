"""The answer a completion states, for counting different ones."""

from __future__ import annotations

import re

from pacedrl.tasks.answers import tagged_answer
from pacedrl.tasks.code.blocks import extract
from pacedrl.thoughts import after_thoughts

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def stated_answer(verifier: str, text: str) -> str:
    r"""What stands in ``<answer>`` tags, a box or after ``####``, else (math, numeric) the last number, else all.

    For ``code`` it is the code. Thoughts before the answer do not count. Two spellings of one value count as two
    answers: this measures diversity, it does not judge.
    """
    text = after_thoughts(text)
    if verifier == "code":
        return extract(text).strip()
    tagged = tagged_answer(text)
    if tagged is not None:
        return tagged
    numbers = _NUMBER.findall(text) if verifier in ("math", "numeric") else []
    return str(numbers[-1]) if numbers else text.strip()
