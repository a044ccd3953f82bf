"""Built-in judges of mathematical answers: does a completion state the gold answer?

``answer`` is a row's gold answer: a number, a plain string, LaTeX, or a GSM8K-style solution ending in ``#### 18``.
A completion that cannot be read is wrong (0.0); a gold answer that cannot be read raises JudgeError. Completions are
hostile: a model under training finds whatever a judge gives credit for.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from pacedrl.tasks.math_answers import MathOptions, equal_answers
from pacedrl.tasks.math_notation import balanced, tidy
from pacedrl.tasks.math_values import load_math_verify

__all__ = [
    "JudgeError",
    "MathOptions",
    "last_boxed",
    "load_math_verify",
    "math_gold",
    "math_reward",
    "numeric_reward",
    "tagged_answer",
]

NUMERIC_TOLERANCE = 1e-6
"""Relative tolerance of the ``numeric`` verifier."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_VALUE = re.compile(
    r"(?:(?<![\w.)\]])(?P<sign>[-+−]))?"  # a sign, unless it subtracts: the 2 of "5-2" is positive
    rf"\$?(?P<number>(?=\.?\d){_NUMBER})"
    rf"(?: ?/ ?(?P<denominator>(?=\.?\d){_NUMBER}))?",
    re.ASCII,
)
_LONGEST_NUMBER = 400  # characters; more is beyond what a float holds
_TAIL = 100_000  # characters in which to look for the last number
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\(?!\\(?:boxed|fbox)).|[{}]", re.DOTALL)
_THE_ANSWER_IS = re.compile(r"\bthe (?:final )?answer is\b:?", re.IGNORECASE)
_END_OF_ANSWER = re.compile(r"\n|\.\s|,? +(?:because|since|so|as|which)\b")
_NEGATED = re.compile(r"(?:\bnot|n't|\bnever|\\neq?|≠|!=)(?:\s+(?:be|equal(?:\s+to)?|the|answer|is))*[\s$*:(\[\\]*\Z")
_DIGITS = str.maketrans({chr(0xFF10 + digit): str(digit) for digit in range(10)})


class JudgeError(Exception):
    """The verifier cannot judge this completion; the message says why in one line."""


def numeric_reward(answer: Any, text: str) -> float:
    """1.0 when the last number of ``text`` equals the last number of the gold answer, else 0.0.

    Thousands separators, fractions a/b, and the signs $ and % (dropped, not divided by) are understood. Raises
    JudgeError when the gold answer holds no number.
    """
    gold = _last_number(_stated(answer))
    if gold is None:
        raise JudgeError(f"the gold answer {_shown(answer)} holds no number; the verifier 'numeric' needs one")
    value = _last_number(text)
    return float(value is not None and math.isclose(value, gold, rel_tol=NUMERIC_TOLERANCE))


def math_reward(answer: Any, text: str, options: MathOptions = MathOptions()) -> float:  # noqa: B008 - it is frozen
    r"""1.0 when the final answer of ``text`` equals the gold answer mathematically, else 0.0.

    The final answer is the last ``\boxed{}``, else what follows the last ``####`` on its line, else what follows the
    last "the answer is", else the whole text if it is nothing but a number; with ``options.last_number``, else the
    last number. A box that prose denies ("not \boxed{5}") states nothing. Raises JudgeError when the gold answer is
    neither text nor a number, is empty, or has brackets that do not balance.
    """
    gold = math_gold(answer)
    if not gold or not _readable(gold):
        raise JudgeError(f"the gold answer {_shown(answer)} is not one the verifier 'math' can parse")
    stated = _final_answer(text, options)
    return float(stated is not None and equal_answers(gold, stated, options))


def math_gold(answer: Any) -> str:
    """The gold answer itself, out of a GSM8K-style solution, a boxed one or dollar signs.

    Raises JudgeError when ``answer`` is neither text nor a number.
    """
    stated = _stated(answer)
    boxed = last_boxed(stated)
    stated = (stated if boxed is None else boxed).strip()
    if len(stated) > 2 and stated[0] == stated[-1] == "$" and "$" not in stated[1:-1]:
        stated = stated.strip("$").strip()
    return stated


def tagged_answer(text: str) -> str | None:
    r"""What stands in the last ``<answer>...</answer>``, the last ``\boxed{}``, or after the last ``####``."""
    start = text.rfind("<answer>")
    if start >= 0 and (end := text.find("</answer>", start)) >= 0:
        return text[start + len("<answer>") : end].strip()
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return text.rpartition("####")[2].strip() if "####" in text else None


def last_boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces balance, the outermost of nested ones; None without one."""
    box = _last_box(text)
    return None if box is None else text[box[1] : box[2]]


def _last_box(text: str) -> tuple[int, int, int] | None:
    """Where the last box starts, and where its contents start and end."""
    if "box" not in text:  # most hostile texts are long and hold none: reading them brace by brace takes a second
        return None
    last = None
    opened: list[tuple[int, int] | None] = []  # a brace is None
    for token in _BOX_OR_BRACE.finditer(text):  # an escaped brace is a token of its own and does not count
        if token.group() == "{":
            opened.append(None)
        elif token.group() == "}":
            box = opened.pop() if opened else None
            last = (*box, token.start()) if box else last
        elif token.group().endswith("{") and len(token.group()) > 2:
            opened.append((token.start(), token.end()))
    return last


def _final_answer(text: str, options: MathOptions) -> str | None:
    if (box := _last_box(text)) is not None:
        if _NEGATED.search(text[max(0, box[0] - 60) : box[0]]):
            return None
        return _unboxed(text[box[1] : box[2]])
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    end = None
    for match in _THE_ANSWER_IS.finditer(text):
        end = match.end()
    if end is not None:
        return _END_OF_ANSWER.split(text[end : end + 1000].strip(), maxsplit=1)[0]
    if len(text) <= _LONGEST_NUMBER and _VALUE.fullmatch(text.strip()):
        return text.strip()
    numbers = list(_VALUE.finditer(text[-_TAIL:])) if options.last_number else []
    return numbers[-1].group() if numbers else None


def _unboxed(content: str) -> str | None:
    """What nested boxes hold, as long as each is all that the one around it holds."""
    for _ in range(3):
        box = _last_box(content)
        if box is None:
            return content
        if content[: box[0]].strip() or content[box[2] + 1 :].strip():
            return None
        content = content[box[1] : box[2]]
    return None


@lru_cache(maxsize=1024)
def _readable(gold: str) -> bool:
    return balanced(tidy(gold))


def _stated(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise JudgeError(f"the gold answer {_shown(answer)} is neither text nor a number; map columns.answer to one")
    return str(answer).rpartition("####")[2].strip()


def _last_number(text: str) -> float | None:
    match = None
    for match in _VALUE.finditer(text[-_TAIL:].translate(_DIGITS)):  # noqa: B007 - the last one is the point
        pass
    if match is None or len(match.group()) > _LONGEST_NUMBER:
        return None
    value = float(match["number"].replace(",", ""))
    if match["denominator"]:
        denominator = float(match["denominator"].replace(",", ""))
        value = value / denominator if denominator else math.nan
    if not math.isfinite(value):
        return None
    return -value if match["sign"] in ("-", "−") else value


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else text[:77] + "..."
