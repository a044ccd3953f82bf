"""Rewards of the verifiers ``math`` and ``numeric``: does a completion state the gold answer?

The gold answer is a number, plain text, LaTeX, or a GSM8K-style solution that ends with ``#### 18``. A completion
that cannot be read is wrong (0.0); a gold answer that cannot be read raises JudgeError.
"""

from fractions import Fraction
from functools import lru_cache
from typing import Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.completions import boxes, without_solution
from pacedrl.tasks.math.equality import MathOptions, equal_answers
from pacedrl.tasks.math.notation import levels, tidy
from pacedrl.tasks.math.statements import final_answer, last_number, marked_answer

NUMERIC_TOLERANCE = Fraction(1, 10**6)
"""Relative tolerance of ``numeric`` if neither number is whole."""


def numeric_reward(answer: Any, text: str) -> float:
    """Return 1.0 when the last number of ``text`` equals the last number of the gold answer, else 0.0.

    If ``text`` states an answer as for ``math_reward``, the last number of this statement counts, and it must not be
    part of an expression. Thousands separators, fractions a/b, $ (ignored) and % (a hundredth, which the completion
    may leave out) are understood. Raises JudgeError when the gold answer contains no number.
    """
    gold, percent = last_number(_gold_text(answer))
    if gold is None:
        raise JudgeError(f"the gold answer {_shown(answer)} holds no number; the verifier 'numeric' needs one")
    stated = marked_answer(text)
    value, _ = last_number(text if stated is None else stated, stated is not None)
    if value is None:
        return 0.0
    slack = NUMERIC_TOLERANCE * max(abs(gold), abs(value)) if 1 not in (value.denominator, gold.denominator) else 0
    return float(abs(value - gold) <= slack or (percent and value == gold * 100))


def math_reward(answer: Any, text: str, options: MathOptions = MathOptions()) -> float:  # noqa: B008 - it is frozen
    """Return 1.0 when the final answer of ``text`` equals the gold answer mathematically, else 0.0.

    Raises JudgeError when the gold answer is neither text nor a number, or would not be accepted as its own answer.
    """
    gold = math_gold(answer)
    if not gold or not _accepts_itself(gold):
        raise JudgeError(f"the gold answer {_shown(answer)} is not one the verifier 'math' can parse")
    stated = final_answer(text, options.last_number)
    return float(stated is not None and equal_answers(gold, stated, options))


@lru_cache(maxsize=1024)  # the completions of a prompt share its gold answer
def _accepts_itself(gold: str) -> bool:
    """Whether the gold answer in a box is accepted; it is not if it is empty or its brackets do not balance."""
    stated = final_answer(rf"\boxed{{{gold}}}")
    return stated is not None and levels(tidy(gold))[-1] == 0 and equal_answers(gold, stated, MathOptions())


def math_gold(answer: Any) -> str:
    """Return the gold answer without the solution, the boxes (all of them count) or the dollar signs around it.

    Raises JudgeError when ``answer`` is neither text nor a number.
    """
    text = _gold_text(answer)
    contents = dict.fromkeys(text[start:end].strip() for _, start, end in boxes(text))
    text = ", ".join(filter(None, contents)) if contents else text
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text.strip("$")
    return text.strip()


def _gold_text(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise JudgeError(f"the gold answer {_shown(answer)} is neither text nor a number; map columns.answer to one")
    return without_solution(answer)


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else text[:77] + "..."
