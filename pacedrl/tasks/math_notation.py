r"""Mathematical notation as text: one spelling for what has many, the parts of an answer, and what is safe to evaluate.

Nothing here evaluates anything. No regular expression takes more than quadratic time, and callers that pass untrusted
text pass at most LONGEST_ANSWER characters.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

LONGEST_ANSWER = 500
"""Characters. A longer answer is compared as text, never read as mathematics."""

MOST_PARTS = 40
"""Elements of a list, set or tuple; a longer one is compared as text."""

_LONGEST_EXPRESSION = 300  # characters of one element of an answer
_DEEPEST = 8  # brackets; reading takes time exponential in them
_LARGEST_POWER = 5_000  # product of the numbers in all exponents: 10^{5000} is fine, 10^10^10 is not

_ASCII = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # fullwidth forms
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("\xa0\u2009\u202f\u3000\t\r\n", " "),
        **dict(zip("×·÷∗", (r"\times ", r"\cdot ", "/", "*"), strict=True)),
        **dict(zip("π∞θ√°±", (r"\pi ", r"\infty ", r"\theta ", r"\sqrt", r"^\circ", r"\pm "), strict=True)),
        **dict(zip("≤≥≠∈∪∅", (r"\leq ", r"\geq ", r"\neq ", r"\in ", r"\cup ", r"\emptyset "), strict=True)),
        **dict(zip("²³½¼¾", ("^2", "^3", r"\frac{1}{2}", r"\frac{1}{4}", r"\frac{3}{4}"), strict=True)),
    }
)
_WORDS = r"\\(?:text(?:normal|bf|it|rm|tt|sf)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname|boldsymbol)\s*"
_SPELLINGS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])", ""),
        (r"\{\s*,\s*\}", ","),
        (r"(?<=,)\s*\\!\s*|\\!", ""),
        (r"(?<=\d)\\,(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;:> ]|\\q?quad(?![a-zA-Z])|(?<!\\)~", " "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])", " degrees "),
        (rf"{_WORDS}\{{([^{{}}]*)\}}", r" \1 "),
        (r"\\?\$|[€£¥]|\*\*(?=[^*]*$)|^\*\*|`", ""),
        (r"\\?%|\bper ?cent(?:age)?\b|\bpct\b", "%"),
        (r"\\leqslant(?![a-zA-Z])|\\le(?![a-zA-Z])|<=", r"\\leq "),
        (r"\\geqslant(?![a-zA-Z])|\\ge(?![a-zA-Z])|>=", r"\\geq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\ne(?![a-zA-Z])|\\not\s*=|!=", r"\\neq "),
        (r"\\(?:varnothing(?![a-zA-Z])|\{\s*\\\})", r"\\emptyset "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])sqrt\s*(?=[({\d])", r"\\sqrt"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\w)", r"\1{\2}"),
        (r"\\frac\s*\{", r"\\frac{"),
        (r"(?<=\{)\s+|\s+(?=\})", ""),
        (r"\(([0-9A-Z]+)\)\s*_", r"\1_"),
        (r"(?<=[0-9A-Z])\s*_\s*\{(\d+)\}", r"_\1"),
        (r"\s+", " "),
    ]
]
_DELIMITERS = [(r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**")]
_TOKEN = re.compile(r"\\begin(?![a-zA-Z])|\\end(?![a-zA-Z])|\\[{}]|\\[a-zA-Z]+|\\.|[()\[\]{}]")
_OPENING = {"(": 1, "[": 1, "{": 1, r"\{": 1, r"\begin": 1, ")": -1, "]": -1, "}": -1, r"\}": -1, r"\end": -1}
_SEPARATOR = re.compile(r",?\s*(?<![a-zA-Z])(?:and|or|AND|OR)(?![a-zA-Z])|[,;]")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<decimal>(?:\d{1,3}(?:, ?\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"(?:e(?P<exponent>[-+]?\d{1,3})| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?(?P<power>[-+]?\d{1,3})\}?)?"
    r"|(?P<whole>\d+ (?=[\d])|\d+ ?(?=\\))?"
    r"(?:\\frac\{(?P<minus>-?)(?P<top>\d+)\}\{(?P<under_minus>-?)(?P<bottom>\d+)\}|(?P<over>\d+) ?/ ?(?P<under>\d+))"
    r")(?P<percent> ?%)?",
    re.IGNORECASE | re.ASCII,
)
_KNOWN_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|pi|infty|cdot|times|div|pm|mp|ln|log|(?:arc)?(?:sin|cos|tan)|cot|sec|csc|binom|[lr](?:ceil|floor|vert)"
    r"|theta|alpha|beta|gamma|delta|lambda|mu|sigma|(?:var)?(?:phi|epsilon)|omega|rho|tau|[{}\\])"
)


def tidy(text: str) -> str:
    """The answer in one spelling: ASCII, no dollar signs, plain words for ``\\text{}``, braced fractions and roots."""
    text = text.translate(_ASCII).strip().rstrip(".,;:").strip()
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : -len(closing)]
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = inner if "$" not in inner else text
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;:\\ ").removeprefix("+").strip()
    while (content := enclosed(text, "{", "}")) is not None:
        text = content.strip()
    return text


def squashed(text: str) -> str:
    """What two answers must share to be the same text: no spaces, words in lower case (not single letters)."""
    text = re.sub(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", lambda word: word.group().lower(), text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 5 6 is not 56
    option = re.fullmatch(r"\(([a-zA-Z])\)", text)  # (A) is the choice A
    return option[1] if option else text


def depth_changes(text: str) -> list[tuple[int, int, int]]:
    """Start, end and +1 or -1 for each bracket; ``\\begin`` opens and ``\\end`` closes."""
    found = [(m.start(), m.end(), _OPENING.get(m.group(), 0)) for m in _TOKEN.finditer(text)]
    return [change for change in found if change[2]]


def balanced(text: str) -> bool:
    """Whether every bracket is closed, whatever its shape: [1, 2) is an interval."""
    depth = 0
    for _, _, change in depth_changes(text):
        depth += change
        if depth < 0:
            return False
    return depth == 0


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between separators outside of all brackets, stripped."""
    depth, level = 0, [0] * (len(text) + 1)
    changes = {end: change for _, end, change in depth_changes(text)}
    for position in range(len(text) + 1):
        depth += changes.get(position, 0)
        level[position] = depth
    parts, start = [], 0
    for match in separator.finditer(text):
        if level[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """What stands between the brackets that enclose the whole text; None when none do."""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
        return None
    depth = 0
    for _, end, change in depth_changes(text):
        depth += change
        if depth == 0:
            return text[len(opening) : -len(closing)] if end == len(text) else None
    return None


def items(text: str) -> list[str]:
    r"""The answers in a list ("1, 2 and 3"), with ``\pm`` as two; a text that is no list is its only element."""
    parts = [part for part in split(text, _SEPARATOR) if part]
    signed = []
    for part in parts:
        both = r"\pm" in part
        signed += [part.replace(r"\pm", sign) for sign in "+-"] if both else [part]
    return [part.removeprefix("+").strip() for part in signed]


class Number(NamedTuple):
    """A plain number: its value (a percent sign is not divided by) and how it is written."""

    value: Fraction
    decimal: bool
    percent: bool
    divided: bool


def read_number(text: str) -> Number | None:
    """The plain number that is all of the text: a decimal, a fraction or a mixed number, with nothing to work out."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > 60:
        return None
    if match["decimal"]:
        value = Fraction(re.sub("[, ]", "", match["decimal"]))
        value *= Fraction(10) ** int(match["exponent"] or match["power"] or 0)
    else:
        bottom = int(match["bottom"] or match["under"])
        if bottom == 0 or (match["whole"] and (match["minus"] or match["under_minus"])):
            return None
        value = Fraction(int(match["top"] or match["over"]), bottom)
        value *= -1 if match["minus"] != match["under_minus"] else 1
        value += int(match["whole"] or 0)
    decimal = "." in (match["decimal"] or "") or bool(match["exponent"])
    return Number(-value if match["sign"] == "-" else value, decimal, bool(match["percent"]), not match["decimal"])


def tractable(text: str) -> bool:
    """Whether reading and evaluating the text costs little, as far as its looks can tell.

    Refused: long or non-ASCII text, unknown commands (sums and integrals among them), words, deep nesting, numbers of
    more than 30 digits, towers of exponents, powers beyond _LARGEST_POWER, large or nested factorials.
    """
    commands = set(re.findall(r"\\(?:[a-zA-Z]+|.)", text))
    bare = re.sub(r"\\(?:begin|end)\{[bpv]?matrix\}|\\[a-zA-Z]+", " ", text)
    return (
        0 < len(text) <= _LONGEST_EXPRESSION
        and text.isascii()
        and text.isprintable()
        and text.count("|") <= 8  # each may open or close, and math-verify tries them all
        and text.count("/") <= 20
        and all(map(_KNOWN_COMMANDS.fullmatch, commands))
        and not re.search(r"[a-zA-Z]{4,}|\d{31}|\d\s+\d|[:?@#&\"'`~]|\d\)?\s*_", bare)
        and _shallow(text)
        and _small_powers(text)
        and _small_factorials(text)
        and not (re.search(r"\\l(?:ceil|floor)", text) and "^" in text and re.search(r"\d{3}", text))
    )


def _shallow(text: str) -> bool:
    depth = 0
    for _, _, change in depth_changes(text):
        depth += change
        if not 0 <= depth <= _DEEPEST:
            return False
    return depth == 0


def _small_powers(text: str) -> bool:
    power = 1
    if re.search(r"\^\s*(?:\w+|\{[^{}]*\})\s*\^", text):
        return False
    for match in re.finditer(r"\^", text):
        exponent = _operand(text, match.end())
        plain = re.sub(r"[a-df-hj-zA-DF-Z]\^(?:\d(?!\d)|\{\d\})", "", exponent)  # e^{x^2}, but no tower of numbers
        if "!" in exponent or "^" in plain or (plain != exponent and re.search(r"\d\d", plain)):
            return False
        for number in re.findall(r"\d+", exponent):
            power *= max(int(number[:6]), 1)
    return power <= _LARGEST_POWER or (power <= 10**12 and _separate_powers(text))


def _separate_powers(text: str) -> bool:
    """Many small powers of plain symbols and numbers, as a polynomial has: nothing multiplies their exponents."""
    return len(re.findall(r"(?<=[a-zA-Z\d])\^\{?\d{1,2}\}?(?!\d)", text)) == text.count("^")


def _operand(text: str, start: int) -> str:
    """The exponent that begins at ``start``: a braced or bracketed group, or a run of letters and digits."""
    rest = text[start:].lstrip()
    depth = 0
    for _, end, change in depth_changes(rest) if rest[:1] in ("{", "(") else []:
        depth += change
        if depth == 0:
            return rest[:end]
    plain = re.match(r"[-+]?(?:\\?\w+)", rest)
    return plain.group() if plain else rest[:1]


def _small_factorials(text: str) -> bool:
    if r"\binom" in text and re.search(r"\d{3}|[!^]", re.sub(r"\\binom\{\d{1,4}\}\{\d{1,4}\}", "", text)):
        return False
    if "!" not in text:
        return True
    if text.count("!") > 6 or re.search(r"\d{5,}\s*!|!\s*[)}\]]*\s*[!^]|\^[^!]*!", text):
        return False
    digits = len(re.findall(r"\d", text))
    if re.search(r"[)}\]|]\s*!", text) and (
        digits > 4 or re.search(r"\d{3}", text) or (digits > 1 and text.count("!") > 1)
    ):
        return False
    return "^" not in text or not re.search(r"\d{3}", text)
