"""Finds the parts of a completion's text: its thoughts, its boxes and the answer that it states."""

import re
from typing import Any

from pacedrl.tasks.code.blocks import extract

THINK, END_OF_THINK = "<think>", "</think>"
"""Tags around the thoughts that a model writes before its answer."""

ANSWER_TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
"""Group 1 is the text between the tags."""

_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\(?!\\(?:boxed|fbox)).|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed +(-?(?:\\frac\{[^{}]*\}\{[^{}]*\}|[\w.,/]*\w))")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def after_thoughts(text: str) -> str:
    """Return what follows the last ``</think>``, or "" if thoughts begin but do not end.

    A completion without these tags is returned whole.
    """
    _, end, answer = text.rpartition(END_OF_THINK)
    return answer if end or THINK not in text else ""


def stated_answer(verifier: str, text: str) -> str:
    r"""Return the answer that follows the thoughts, for counting different answers.

    This is the tagged answer, else the last number (``math``, ``numeric``), else the whole text. For ``code`` it is
    the code. Two spellings of one value count as two answers: this measures diversity and does not judge.
    """
    text = after_thoughts(text)
    if verifier == "code":
        return extract(text).strip()
    tagged = tagged_answer(text)
    if tagged is not None:
        return tagged
    numbers = _NUMBER.findall(text) if verifier in ("math", "numeric") else []
    return str(numbers[-1]) if numbers else text.strip()


def tagged_answer(text: str) -> str | None:
    r"""Return the content of the last ``<answer>``, else of the last ``\boxed{}``, else the text after ``####``."""
    if tags := ANSWER_TAGS.findall(text):
        return str(tags[-1]).strip()
    if (boxed := last_boxed(text)) is not None:
        return boxed.strip()
    return text.rpartition("####")[2].strip() if "####" in text else None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last outermost ``\boxed{}`` with balanced braces, or None if there is no such box."""
    found = boxes(text)
    return text[found[-1][1] : found[-1][2]] if found else None


def without_solution(answer: Any) -> str:
    """Return a gold answer as text; if it is a GSM8K-style solution, only what follows the last ``####``."""
    return str(answer).rpartition("####")[2].strip()


def boxes(text: str) -> list[tuple[int, int, int]]:
    """Find the outermost boxes: where each box starts, and where its content starts and ends."""
    if "box" not in text:  # most long hostile texts contain no box, and reading all their braces takes a second
        return []
    found: list[tuple[int, int, int]] = []
    opened: list[re.Match[str]] = []
    for token in _BOX_OR_BRACE.finditer(text):  # an escaped brace is a token of its own and does not count
        if token.group() != r"\{" and token.group().endswith("{"):
            opened.append(token)
        elif token.group() == "}" and opened and len((opening := opened.pop()).group()) > 1:
            while found and found[-1][0] > opening.start():
                found.pop()
            found.append((*opening.span(), token.start()))
    return found or [(match.start(), *match.span(1)) for match in _BARE_BOX.finditer(text)]
