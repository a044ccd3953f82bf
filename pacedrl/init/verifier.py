"""Which verifier fits the answers of unknown data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.code.verifier import find_tests
from pacedrl.tasks.completions import without_solution
from pacedrl.types import Prompt

LONGEST_EXACT = 80
"""Characters up to which a completion may be expected to equal an answer."""
NUMERIC_DIGITS = 6
"""What the verifier ``numeric`` tells apart."""

_NUMBER = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?: ?/ ?\d+)?%?")
_LEADING_ZERO = re.compile(r"[-+]?0\d")
_LATEX = re.compile(r"\\[a-zA-Z({\[]|\$.+\$|\^|\bsqrt\b")


@dataclass(frozen=True)
class Choice:
    """A verifier and, in words, what of the data speaks for it; ``caution`` where nothing built in really fits."""

    verifier: str
    why: str
    options: dict[str, Any] = field(default_factory=dict)
    caution: str = ""


def propose(prompts: Sequence[Prompt]) -> Choice | None:
    """The verifier for these prompts' answers, or for the tests in their columns; None where there is neither."""
    if all(map(_has_tests, prompts)):
        return Choice("code", "the rows hold tests: the completion's code is run against them, in a sandbox")
    answers = [prompt.answer for prompt in prompts if prompt.answer is not None]
    if not answers:
        return None
    if all(isinstance(answer, dict) for answer in answers):
        return _game(answers)
    texts = [without_solution(answer) for answer in answers]
    example = max(texts, key=len)
    if any(map(_LATEX.search, texts)):
        latex = next(filter(_LATEX.search, texts))
        return Choice("math", f"answers are mathematics, such as {shown(latex)}; it wants them in \\boxed{{}}")
    if all(text and _NUMBER.fullmatch(text) for text in texts):
        return _number(texts)
    if len(example) > LONGEST_EXACT or any("\n" in text for text in texts):
        return Choice(
            "exact",
            f"answers are texts of up to {len(example)} characters, and the completion must equal them",
            caution="the answers are long texts, which a completion hardly ever equals: judge them with a function of "
            "your own (--reward reward.py:reward)",
        )
    return Choice("exact", f"answers are short texts, such as {shown(example)}, and the completion must equal them")


def shown(text: str) -> str:
    """Some of a text, on one line and with nothing that would end it."""
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _has_tests(prompt: Prompt) -> bool:
    try:
        find_tests(prompt)
    except JudgeError:
        return False
    return True


def _game(answers: Sequence[dict[str, Any]]) -> Choice | None:
    if all({"numbers", "target"} <= set(answer) for answer in answers):
        return Choice("countdown", "answers are numbers to combine and a target: the arithmetic is checked exactly")
    if all({"names", "solution"} <= set(answer) for answer in answers):
        return Choice("knights_knaves", "answers say who is a knight and who a knave: every role counts")
    return None


def _number(texts: Sequence[str]) -> Choice:
    zero = next(filter(_LEADING_ZERO.match, texts), None)
    if zero is not None:
        return Choice("exact", f"answers are strings of digits, such as {shown(zero)}, where the first 0 counts")
    longest = max(texts, key=lambda text: sum(map(str.isdecimal, text)))
    if sum(map(str.isdecimal, longest)) > NUMERIC_DIGITS:
        return Choice(
            "math",
            f"answers are long numbers, such as {shown(longest)}; `numeric` compares {NUMERIC_DIGITS} digits only",
        )
    return Choice(
        "numeric",
        f"answers are numbers, such as {shown(longest)}; the completion's last number counts. "
        "Stricter: `math`, for answers in \\boxed{}",
    )
