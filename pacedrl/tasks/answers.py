"""Built-in judges of mathematical answers: does a completion state the gold answer?

``answer`` is a row's gold answer: a number, a plain string, LaTeX, or a GSM8K-style solution ending in ``#### 18``.
A completion that cannot be read is wrong (0.0); a gold answer that cannot be read raises JudgeError. Completions are
hostile: a model under training finds whatever a judge gives credit for.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pacedrl.tasks.math.answers import MathOptions as MathOptions
from pacedrl.tasks.math.answers import equal_answers
from pacedrl.tasks.math.notation import BOLD, levels, read_number, tidy
from pacedrl.tasks.math.values import load_math_verify as load_math_verify

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
    r"(?im)(?:\b(?:answer|ans\b\.?|(?:final|correct) result|(?:correct|right|best) (?:option|choice))"
    r"(?:\s+to\s[^.\n]{1,80}?)?\s?(?:\b(?:is|(?:would|should|must) be)\b(?:\s+(?:therefore|thus|then|simply|just)\b)?"
    r"\s*:?|\bequals\b|[:：=])|^[# ]{0,8}(?:the )?(?:final )?answer\s*$|答案[是为：:]+)"
)
_END_OF_ANSWER = re.compile(
    r"\n|。|(?<!\\)[.!?]\s|,? +(?:because|since|so|as|which|where|in (?:total|all)|altogether)\b"
)
_END_TOKEN = re.compile(r"</s>|<(?:eos|end_of_turn)>|<\|[\w.]{1,30}\|>")
_LETTER = re.compile(r"\(?[A-J]\)?\.?")
_DISPLAY = re.compile(r"(?:\$\$|\\\[)(.+?)(?:\$\$|\\\])", re.DOTALL)
_NEGATED = re.compile(  # what stands before a statement that is denied
    r"(?i)(?:\b(?:not|cannot|never|false|wrong|incorrect|impossible|rul(?:es?|ed|ing) out|(?:reject|discard|exclud"
    r"|eliminat)\w*|(?:instead|rather|other) (?:of|than)|unlike|except|anything but)|n't|\\neq?|≠|!=)(?:\s+(?:be|equal"
    r"(?:\s+to)?|the|answer|is|think|believe|that|to|get|final|correct|value|option))*[\s$*:(\[\\]*\Z"
)
_WRONG = (
    r"(?:wrong|incorrect|false|mistaken?|impossible|invalid|ruled out|rejected|too (?:large|small|big|high|low)|error"
    r"|not (?:the )?(?:final |correct |right )*(?:correct|right|true|answer|possible|valid|it))\b"
)
_DENIED = re.compile(  # what stands after one
    r"(?i)[\s$*)\]\\]*(?:cannot|fails|\w+n't|(?:is|was|can|could|will|would|does|did|must|should) (?:\w+ly |also |be )*"
    r"not)\b|[\s$*)\]\\.?!,:;(—–-]*(?:(?:wait|but|hmm|oh|actually)\b[ ,]*)*"
    rf"(?:(?:no|nope|{_WRONG})(?=[\s$*]*(?:[.,!;)]|\Z))|(?:(?:that|this|it|which|the answer) ?)?"
    rf"(?:'s|is|was|would be|must be|seems|looks) (?:\w+ly |also |an? |the )*{_WRONG})"
)
_JOINED_BEFORE = re.compile(  # what makes a box or number part of a larger expression
    r"(?:(?:(?: |\d|(?<!<)\b[a-zA-Z])[<>]=?|[\^_]\{?|\\(?:[lg]eq?|[lg]t|times|cdot|div|pm|ln|log|sin|cos"
    r"|sqrt(?:\[\w+\])?|[dt]?frac(?:\{[^{}]*\})?)[ {(]*|(?:[\d)}=$]|\b[a-zA-Z]) *[-+*/−]) *|\d"
    r"|-[$({\\]{0,3}|−[ $({\\]{0,3}|\bminus[ $({\\]{1,3}"  # not "- ", which begins an item of a list
    r"|(?<![a-zA-Z\\])[a-zA-Z])\Z"
)
_JOINED_AFTER = re.compile(
    r"[.:]?\d|[\^_](?!\{?\\circ)|(?![aI]\b)[a-zA-Z](?![a-zA-Z])|[ $]*(?:\\(?:[lgn]eq?|[lg]t|times|cdot|div|pm|sqrt"
    r"|[dt]?frac|pi|ln|log)(?![a-zA-Z])|[<>]=? |[-+*/−] *(?:\d|\\[a-z]|[b-zB-Z]\b)|or [$(\\]*-?\d)"
)
_SUFFIX = re.compile(r"[ $]*(?P<percent>\\?%|per ?cent\b)|\s*\\(?:text|mathrm)\{\s*\w+\s*\}")


class JudgeError(Exception):
    """The verifier cannot judge this completion; the message says why in one line."""


def numeric_reward(answer: Any, text: str) -> float:
    """1.0 when the last number of ``text`` equals the last number of the gold answer, else 0.0.

    Where ``text`` states an answer as for ``math_reward``, the last number of that counts. Thousands separators,
    fractions a/b, $ (dropped) and % (a hundredth, which an answer may leave out) are understood. A stated answer must
    not use the number in an expression. Raises JudgeError when the gold answer holds no number.
    """
    gold, percent = _last_number(_stated(answer))
    if gold is None:
        raise JudgeError(f"the gold answer {_shown(answer)} holds no number; the verifier 'numeric' needs one")
    stated = _stated_answer(text)
    value, _ = _last_number(text if stated is None else stated, stated is not None)
    if value is None:
        return 0.0
    slack = NUMERIC_TOLERANCE * max(abs(gold), abs(value)) if 1 not in (value.denominator, gold.denominator) else 0
    return float(abs(value - gold) <= slack or (percent and value == gold * 100))


def math_reward(answer: Any, text: str, options: MathOptions = MathOptions()) -> float:  # noqa: B008 - it is frozen
    r"""1.0 when the final answer of ``text`` equals the gold answer mathematically, else 0.0.

    The final answer is what ``text`` states last in ``<answer>`` tags, else in ``\boxed{}``, else after ``####`` on its
    line, else after "the answer is" or "Answer:", else the whole text if it is nothing but a number or
    a letter from A to J; with ``options.last_number``, else the last number. A statement that prose denies ("not
    \boxed{5}", "\boxed{5} is wrong") states nothing, nor does a box within a larger expression ("x > \boxed{5}").
    Raises JudgeError when the gold answer is neither text nor a number, or would not be accepted as its own answer.
    """
    gold = math_gold(answer)
    if not gold or not _is_answerable(gold):
        raise JudgeError(f"the gold answer {_shown(answer)} is not one the verifier 'math' can parse")
    stated = final_answer(text, options)
    return float(stated is not None and equal_answers(gold, stated, options))


@lru_cache(maxsize=1024)  # the completions of a prompt share its gold answer
def _is_answerable(gold: str) -> bool:
    """Whether the gold answer, in a box, is accepted: an empty one is not, nor one whose brackets do not balance."""
    stated = final_answer(rf"\boxed{{{gold}}}", MathOptions())
    return stated is not None and levels(tidy(gold))[-1] == 0 and equal_answers(gold, stated, MathOptions())


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
    if (boxed := last_boxed(text)) is not None:
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
    opened: list[re.Match[str]] = []
    for token in _BOX_OR_BRACE.finditer(text):  # an escaped brace is a token of its own and does not count
        if token.group() != r"\{" and token.group().endswith("{"):
            opened.append(token)
        elif token.group() == "}" and opened and len((opening := opened.pop()).group()) > 1:
            while boxes and boxes[-1][0] > opening.start():
                boxes.pop()
            boxes.append((*opening.span(), token.start()))
    return boxes or [(match.start(), *match.span(1)) for match in _BARE_BOX.finditer(text)]


def final_answer(text: str, options: MathOptions) -> str | None:
    text = _END_TOKEN.sub("", text)
    if (stated := _stated_answer(text)) is not None:
        return stated or None
    bare = BOLD.sub(r"\1", text.strip()) if len(text) <= _LONGEST_NUMBER else ""
    if bare and (read_number(tidy(bare)) or _LETTER.fullmatch(bare)):
        return bare
    numbers = list(_VALUE.finditer(text[-_TAIL:])) if options.last_number else []
    return numbers[-1].group() if numbers else None


def _stated_answer(text: str) -> str | None:
    """The answer that the text marks as such; "" where what it marks is denied, None where it marks none."""
    tags = [match for match in _TAG.finditer(text) if match[1].strip()] if "</" in text else []
    if tags:
        stated = _stated_answer(tags[-1][1])
        answer = tags[-1][1].strip() if stated is None else stated
        return "" if _denied(text, tags[-1].start(), tags[-1].end()) else answer
    if boxes := [box for box in _boxes(text) if not _EMPTY.fullmatch(text, box[1], box[2])]:
        return _boxed_answer(text, boxes)
    if "####" in text and (line := text.rpartition("####")[2].strip().partition("\n")[0]):
        return line
    tail = BOLD.sub(r"\1", text[-_TAIL:])
    for match in reversed(list(_STATEMENT.finditer(tail))):
        after = tail[match.end() :][:1000].strip()
        if after:
            display = _DISPLAY.match(after)
            answer, *rest = [display[1], after[display.end() :]] if display else _END_OF_ANSWER.split(after, maxsplit=1)
            return "" if _denied(tail[: match.start()] + "".join(rest), match.start(), match.start()) else answer
    return None


def _denied(text: str, start: int, end: int) -> bool:
    return bool(_NEGATED.search(text[max(0, start - 60) : start]) or _DENIED.match(text[end : end + 150]))


def _boxed_answer(text: str, boxes: list[tuple[int, int, int]]) -> str:
    """The last box, with those right before it: "\boxed{1} and \boxed{2}" is a list. "" where it is not the answer."""
    first = len(boxes) - 1
    while first and _BETWEEN_BOXES.fullmatch(text[boxes[first - 1][2] + 1 : boxes[first][0]]):
        first -= 1
    start, end = boxes[first][0], boxes[-1][2] + 1
    after = text[end : end + 60]
    joined = _JOINED_BEFORE.search(text[max(0, start - 60) : start]) or _JOINED_AFTER.match(after)
    if joined or _MAGNITUDE.match(after) or _denied(text, start, end):
        return ""
    suffix = _SUFFIX.match(after)
    separator = " or " if re.search(r"\bor\b", text[start:end]) else ", "
    contents = dict.fromkeys(_unboxed(text[start:end]) for _, start, end in boxes[first:])
    return separator.join(contents) + (suffix.group() if suffix else "")


def _unboxed(content: str) -> str:
    """The content of the innermost of nested boxes, if each box is all that the box around it holds; else ""."""
    boxes = _boxes(content)
    if not boxes:
        return content
    start, inner, end = boxes[-1]
    more = content[:start].strip() or content[end + 1 :].strip() or len(content) > 1000
    return "" if more else _unboxed(content[inner:end])


def _stated(answer: Any) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise JudgeError(f"the gold answer {_shown(answer)} is neither text nor a number; map columns.answer to one")
    return str(answer).rpartition("####")[2].strip()


def _last_number(text: str, stated: bool = False) -> tuple[Fraction | None, bool]:
    """The number, and whether it is a percentage; None for an exponent, millions and so on, and what is denied."""
    tail = _FRACTION.sub(r" \1/\2 ", text[-_TAIL:])
    *_, last = [None, *_VALUE.finditer(tail)]
    if last is None or len(last.group()) > _LONGEST_NUMBER:
        return None, False
    before, after = tail[max(0, last.start() - 60) : last.start()], tail[last.end() :][:60]
    joined = stated and (_JOINED_BEFORE.search(before) or _JOINED_AFTER.match(after))
    if joined or _MAGNITUDE.match(after) or _RAISED.search(before[-4:]) or _NEGATED.search(before):
        return None, False
    suffix = _SUFFIX.match(after)
    percent = suffix is not None and suffix["percent"] is not None
    number = read_number(tidy(last.group().replace("$", "") + "%" * percent))
    return (number.value if number else None), percent


def _shown(answer: Any) -> str:
    text = repr(answer)
    return text if len(text) <= 80 else text[:77] + "..."
