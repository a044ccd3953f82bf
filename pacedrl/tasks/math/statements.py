r"""The answer that a completion states, found in its text.

It is what the text marks last as its answer: by ``<answer>`` tags, else by ``\boxed{}``, else by ``####`` at the
beginning of the line, else by a phrase such as "the answer is" or "Answer:". A statement that prose denies ("not
\boxed{5}", "\boxed{5} is wrong") states nothing, nor does a box within a larger expression ("x > \boxed{5}").
Completions are hostile: a model in training finds whatever a verifier rewards by mistake.
"""

import re
from fractions import Fraction

from pacedrl.tasks.completions import ANSWER_TAGS, boxes
from pacedrl.tasks.math.notation import BOLD, read_number, tidy

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_VALUE = re.compile(  # with its sign, unless that subtracts: the 2 of "5-2" is positive
    rf"(?:(?<![\w.)\]])[-+−])?\$?(?=\.?\d){_NUMBER}(?: ?/ ?(?=\.?\d){_NUMBER})?"
)
_MAGNITUDE = re.compile(r"\s*(?:hundred|thousand|million|billion|trillion|dozen|hal(?:f|ves)|thirds?|quarters?)\b")
_RAISED = re.compile(r"(?:[\^_]|[\w)}] ?\*\*) ?\{?\Z")
_FRACTION = re.compile(r"\\[dtc]?frac\{(-?\d+)\}\{(\d+)\}")
_LONGEST_NUMBER = 400  # characters; a float holds less
_TAIL = 100_000  # characters at the end that are searched for numbers and phrases
_BETWEEN_BOXES = re.compile(r"[\s$,;.]{0,20}(?:(?:and|or|\\text\{ ?(?:and|or) ?\})[\s$]{0,20})?")
_EMPTY = re.compile(r"(?:\\(?:text|q?quad|[,;:! ])|[{}\s$~.?])*")
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
_NEGATED = re.compile(  # before a statement, denies it
    r"(?i)(?:\b(?:not|cannot|never|false|wrong|incorrect|impossible|rul(?:es?|ed|ing) out|(?:reject|discard|exclud"
    r"|eliminat)\w*|(?:instead|rather|other) (?:of|than)|unlike|except|anything but)|n't|\\neq?|≠|!=)(?:\s+(?:be|equal"
    r"(?:\s+to)?|the|answer|is|think|believe|that|to|get|final|correct|value|option))*[\s$*:(\[\\]*\Z"
)
_WRONG = (
    r"(?:wrong|incorrect|false|mistaken?|impossible|invalid|ruled out|rejected|too (?:large|small|big|high|low)|error"
    r"|not (?:the )?(?:final |correct |right )*(?:correct|right|true|answer|possible|valid|it))\b"
)
_DENIED = re.compile(  # after a statement, denies it
    r"(?i)[\s$*)\]\\]*(?:cannot|fails|\w+n't|(?:is|was|can|could|will|would|does|did|must|should) (?:\w+ly |also |be )*"
    r"not)\b|[\s$*)\]\\.?!,:;(—–-]*(?:(?:wait|but|hmm|oh|actually)\b[ ,]*)*"
    rf"(?:(?:no|nope|{_WRONG})(?=[\s$*]*(?:[.,!;)]|\Z))|(?:(?:that|this|it|which|the answer) ?)?"
    rf"(?:'s|is|was|would be|must be|seems|looks) (?:\w+ly |also |an? |the )*{_WRONG})"
)
_JOINED_BEFORE = re.compile(  # before a box or number, makes it part of a larger expression
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


def final_answer(text: str, take_last_number: bool = False) -> str | None:
    """Return the answer that ``text`` marks, else the whole text if it is only a number or a letter from A to J.

    With ``take_last_number``, fall back on the last number.
    """
    text = _END_TOKEN.sub("", text)
    if (marked := marked_answer(text)) is not None:
        return marked or None
    bare = BOLD.sub(r"\1", text.strip()) if len(text) <= _LONGEST_NUMBER else ""
    if bare and (read_number(tidy(bare)) or _LETTER.fullmatch(bare)):
        return bare
    numbers = _VALUE.findall(text[-_TAIL:]) if take_last_number else []
    return numbers[-1] if numbers else None


def marked_answer(text: str) -> str | None:
    """Return the answer that the text marks as such, "" if the text denies it, None if it marks none."""
    tags = [match for match in ANSWER_TAGS.finditer(text) if match[1].strip()] if "</" in text else []
    if tags:
        last = tags[-1]
        marked = marked_answer(last[1])
        answer = last[1].strip() if marked is None else marked
        return "" if _is_denied(text, last.start(), last.end()) else answer
    if full := [box for box in boxes(text) if not _EMPTY.fullmatch(text, box[1], box[2])]:
        return _boxed_answer(text, full)
    if "####" in text and (line := text.rpartition("####")[2].strip().partition("\n")[0]):
        return line
    return _answer_after_phrase(BOLD.sub(r"\1", text[-_TAIL:]))


def _answer_after_phrase(text: str) -> str | None:
    for phrase in reversed(list(_STATEMENT.finditer(text))):
        if after := text[phrase.end() :][:1000].strip():
            display = _DISPLAY.match(after)
            answer, *rest = [display[1], after[display.end() :]] if display else _END_OF_ANSWER.split(after, maxsplit=1)
            denied = _is_denied(text[: phrase.start()] + "".join(rest), phrase.start(), phrase.start())
            return "" if denied else answer
    return None


def _is_denied(text: str, start: int, end: int) -> bool:
    return bool(_NEGATED.search(text[max(0, start - 60) : start]) or _DENIED.match(text[end : end + 150]))


def _boxed_answer(text: str, found: list[tuple[int, int, int]]) -> str:
    r"""Return the last box, with the boxes right before it (``\boxed{1} and \boxed{2}`` is a list), or "" if denied."""
    first = len(found) - 1
    while first and _BETWEEN_BOXES.fullmatch(text[found[first - 1][2] + 1 : found[first][0]]):
        first -= 1
    start, end = found[first][0], found[-1][2] + 1
    after = text[end : end + 60]
    joined = _JOINED_BEFORE.search(text[max(0, start - 60) : start]) or _JOINED_AFTER.match(after)
    if joined or _MAGNITUDE.match(after) or _is_denied(text, start, end):
        return ""
    suffix = _SUFFIX.match(after)
    separator = " or " if re.search(r"\bor\b", text[start:end]) else ", "
    contents = dict.fromkeys(_unboxed(text[start:end]) for _, start, end in found[first:])
    return separator.join(contents) + (suffix.group() if suffix else "")


def _unboxed(content: str) -> str:
    """Return the content of the innermost of nested boxes, or "" if a box contains anything beside another box."""
    inner = boxes(content)
    if not inner:
        return content
    start, inner_start, end = inner[-1]
    more = content[:start].strip() or content[end + 1 :].strip() or len(content) > 1000
    return "" if more else _unboxed(content[inner_start:end])


def last_number(text: str, marked: bool = False) -> tuple[Fraction | None, bool]:
    """Return the last number of ``text`` and whether it is a percentage.

    The number is None if it is denied, an exponent, or followed by a word such as "million"; likewise if it is part of
    an expression and the text is a ``marked`` answer.
    """
    tail = _FRACTION.sub(r" \1/\2 ", text[-_TAIL:])
    *_, last = [None, *_VALUE.finditer(tail)]
    if last is None or len(last.group()) > _LONGEST_NUMBER:
        return None, False
    before, after = tail[max(0, last.start() - 60) : last.start()], tail[last.end() :][:60]
    joined = marked and (_JOINED_BEFORE.search(before) or _JOINED_AFTER.match(after))
    if joined or _MAGNITUDE.match(after) or _RAISED.search(before[-4:]) or _NEGATED.search(before):
        return None, False
    suffix = _SUFFIX.match(after)
    percent = suffix is not None and suffix["percent"] is not None
    number = read_number(tidy(last.group().replace("$", "") + "%" * percent))
    return (number.value if number else None), percent
