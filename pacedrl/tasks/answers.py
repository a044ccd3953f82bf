"""Built-in judges of mathematical answers: does a completion state the gold answer?

``answer`` is a row's gold answer: a number, a plain string, LaTeX, or a GSM8K-style solution ending in ``#### 18``.
A completion that cannot be read is wrong (0.0); a gold answer that cannot be read raises JudgeError. Completions are
hostile: a model under training finds whatever a judge gives credit for.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from pacedrl.tasks.math_answers import MathOptions, equal_answers
from pacedrl.tasks.math_notation import BOLD, levels, read_number, tidy
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

NUMERIC_TOLERANCE = Fraction(1, 10**6)
"""Relative tolerance of the ``numeric`` verifier, where neither number is whole."""

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_VALUE = re.compile(  # a sign, unless it subtracts: the 2 of "5-2" is positive
    rf"(?:(?<![\w.)\]])[-+−])?\$?(?=\.?\d){_NUMBER}(?: ?/ ?(?=\.?\d){_NUMBER})?"
)
_MAGNITUDE = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|hal(?:f|ves)|thirds?|quarters?)\b")
_RAISED = re.compile(r"(?:[\^_]|[\w)}] ?\*\*) ?\{?\Z")
_FRACTION = re.compile(r"\\[dtc]?frac\{(-?\d+)\}\{(\d+)\}")
_LONGEST_NUMBER = 400  # characters; more is beyond what a float holds
_TAIL = 100_000  # characters in which to look for the last number
_BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\(?!\\(?:boxed|fbox)).|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed +(-?(?:\\frac\{[^{}]*\}\{[^{}]*\}|[\w.,/]*\w))")
_BETWEEN_BOXES = re.compile(r"[\s$,;.]{0,20}(?:(?:and|or|\\text\{ ?(?:and|or) ?\})[\s$]{0,20})?")
_EMPTY = re.compile(r"(?:\\(?:text|q?quad|[,;:! ])|[{}\s$~.?])*")
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_STATEMENT = re.compile(
    r"(?:\b(?:answer|(?:correct|right) (?:option|choice))(?:\s+to\s[^.\n]{1,80}?)?\s?"
    r"(?:\b(?:is|(?:would|should|must) be)\b(?:\s+(?:therefore|thus|then|simply|just)\b)?\s*:?|\bequals\b|[:：=])"
    r"|答案[是为：:]+)",
    re.IGNORECASE,
)
_END_OF_ANSWER = re.compile(r"\n|。|(?<!\\)[.!?]\s|,? +(?:because|since|so|as|which|where)\b")
_DISPLAY = re.compile(r"(?:\$\$|\\\[)(.+?)(?:\$\$|\\\])", re.DOTALL)
_NEGATED = re.compile(
    r"(?:\b(?:not|cannot|never|false|wrong|incorrect)|n't|\\neq?|≠|!=)"
    r"(?:\s+(?:be|equal(?:\s+to)?|the|answer|is|think|believe|that|final|correct))*[\s$*:(\[\\]*\Z"
)


class JudgeError(Exception):
    """The verifier cannot judge this completion; the message says why in one line."""


def numeric_reward(answer: Any, text: str) -> float:
    """1.0 when the last number of ``text`` equals the last number of the gold answer, else 0.0.

    Where ``text`` states an answer as for ``math_reward``, the last number of that counts. Thousands separators,
    fractions a/b, and the signs $ and % (dropped, not divided by) are understood. Raises JudgeError when the gold
    answer holds no number.
    """
    gold = _last_number(_stated(answer))
    if gold is None:
        raise JudgeError(f"the gold answer {_shown(answer)} holds no number; the verifier 'numeric' needs one")
    stated = _stated_answer(text)
    value = _last_number(text if stated is None else stated)
    if value is None:
        return 0.0
    slack = NUMERIC_TOLERANCE * max(abs(gold), abs(value)) if 1 not in (value.denominator, gold.denominator) else 0
    return float(abs(value - gold) <= slack)


def math_reward(answer: Any, text: str, options: MathOptions = MathOptions()) -> float:  # noqa: B008 - it is frozen
    r"""1.0 when the final answer of ``text`` equals the gold answer mathematically, else 0.0.

    The final answer is what ``text`` states last in ``<answer>`` tags, else in ``\boxed{}``, else after ``####`` on its
    line, else after "the answer is" or "Answer:", else the whole text if it is nothing but a number; with
    ``options.last_number``, else the last number. A statement that prose denies ("not \boxed{5}") states nothing.
    Raises JudgeError when the gold answer is neither text nor a number, is empty, or has brackets that do not balance.
    """
    gold = math_gold(answer)
    if not gold or levels(tidy(gold))[-1] != 0:
        raise JudgeError(f"the gold answer {_shown(answer)} is not one the verifier 'math' can parse")
    stated = final_answer(text, options)
    return float(stated is not None and equal_answers(gold, stated, options))


def math_gold(answer: Any) -> str:
    """The gold answer itself, out of a GSM8K-style solution, of boxes (all of them) or of dollar signs.

    Raises JudgeError when ``answer`` is neither text nor a number.
    """
    stated = _stated(answer)
    contents = dict.fromkeys(stated[start:end].strip() for _, start, end in _boxes(stated))
    stated = ", ".join(filter(None, contents)) if contents else stated
    if len(stated) > 2 and stated[0] == stated[-1] == "$" and "$" not in stated[1:-1]:
        stated = stated.strip("$").strip()
    return stated.strip()


def tagged_answer(text: str) -> str | None:
    r"""What stands in the last ``<answer>...</answer>``, the last ``\boxed{}``, or after the last ``####``."""
    if tags := _TAG.findall(text):
        return str(tags[-1]).strip()
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    return text.rpartition("####")[2].strip() if "####" in text else None


def last_boxed(text: str) -> str | None:
    r"""Contents of the last ``\boxed{...}`` whose braces balance, the outermost of nested ones; None without one."""
    boxes = _boxes(text)
    return text[boxes[-1][1] : boxes[-1][2]] if boxes else None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """Where each box that is in no other starts, and where its contents start and end."""
    if "box" not in text:  # most hostile texts are long and hold none: reading them brace by brace takes a second
        return []
    boxes: list[tuple[int, int, int]] = []
    opened: list[tuple[int, int] | None] = []  # a brace is None
    for token in _BOX_OR_BRACE.finditer(text):  # an escaped brace is a token of its own and does not count
        if token.group() == "{":
            opened.append(None)
        elif token.group() == "}":
            if box := opened.pop() if opened else None:
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()
                boxes.append((*box, token.start()))
        elif token.group().endswith("{") and len(token.group()) > 2:
            opened.append((token.start(), token.end()))
    return boxes or [(match.start(), *match.span(1)) for match in _BARE_BOX.finditer(text)]


def final_answer(text: str, options: MathOptions) -> str | None:
    if (stated := _stated_answer(text)) is not None:
        return stated or None
    if len(text) <= _LONGEST_NUMBER and read_number(tidy(text)):
        return text.strip()
    numbers = list(_VALUE.finditer(text[-_TAIL:])) if options.last_number else []
    return numbers[-1].group() if numbers else None


def _stated_answer(text: str) -> str | None:
    """The answer that the text marks as such; "" where what it marks is denied, None where it marks none."""
    tags = [tag.strip() for tag in _TAG.findall(text) if tag.strip()] if "</" in text else []
    if tags:
        stated = _stated_answer(tags[-1])
        return tags[-1] if stated is None else stated
    if boxes := [box for box in _boxes(text) if not _EMPTY.fullmatch(text, box[1], box[2])]:
        return _boxed_answer(text, boxes)
    if "####" in text and (line := text.rpartition("####")[2].strip().partition("\n")[0]):
        return line
    tail = BOLD.sub(r"\1", text[-_TAIL:])
    for match in reversed(list(_STATEMENT.finditer(tail))):
        before, after = tail[: match.start()], tail[match.end() :][:1000].strip()
        if after:
            display = _DISPLAY.match(after)
            answer = display[1] if display else _END_OF_ANSWER.split(after, maxsplit=1)[0]
            return "" if _NEGATED.search(before[-60:]) else answer
    return None


def _boxed_answer(text: str, boxes: list[tuple[int, int, int]]) -> str:
    """The last box, with those right before it: "\boxed{1} and \boxed{2}" is a list."""
    first = len(boxes) - 1
    while first and _BETWEEN_BOXES.fullmatch(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    if _NEGATED.search(text[max(0, boxes[first][0] - 60) : boxes[first][0]]):
        return ""
    return ", ".join(dict.fromkeys(_unboxed(text[start:end]) for _, start, end in boxes[first:]))


def _unboxed(content: str) -> str:
    """The content of the innermost of nested boxes, if each box is all that the box around it holds; else ""."""
    for _ in range(3):
        boxes = _boxes(content)
        if not boxes:
            return content
        start, inner, end = boxes[-1]
        if content[:start].strip() or content[end + 1 :].strip():
            return ""
        content = content[inner:end]
    return ""


def _stated(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise JudgeError(f"the gold answer {_shown(answer)} is neither text nor a number; map columns.answer to one")
    return str(answer).rpartition("####")[2].strip()


def _last_number(text: str) -> Fraction | None:
    """None where there is none, or the last one is an exponent or an index, or counts something like millions."""
    tail = _FRACTION.sub(r" \1/\2 ", text[-_TAIL:])
    *_, last = [None, *_VALUE.finditer(tail)]
    if last is None or len(last.group()) > _LONGEST_NUMBER or _MAGNITUDE.match(tail, last.end()):
        return None
    number = None if _RAISED.search(tail[: last.start()][-4:]) else read_number(tidy(last.group().replace("$", "")))
    return number.value if number else None


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else text[:77] + "..."
