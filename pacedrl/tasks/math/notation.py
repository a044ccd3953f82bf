"""Mathematical notation as text: one spelling for each symbol, the parts of an answer, plain numbers and units.

Nothing is evaluated here. No regular expression takes more than quadratic time, and callers pass short texts.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

BOLD = re.compile(r"(?<![\w)}*])\*\*(?=[^\s*])([^*\n]*)(?<=[^\s*])\*\*(?![\w({*])")
"""Bold text in Markdown, whose asterisks are not powers."""

_SPELT = r"""
−- –- —- ‐- ‑- ‒- ﹣- ×\times_ ·\cdot_ ÷/ ∗* π\pi_ ∞\infty_ θ\theta_ √\sqrt °^\circ_ ±\pm_ ≈\approx_ ≤\leq_ ≥\geq_
≠\neq_ ∈\in_ ∪\cup_ ∅\emptyset_ ℝ\mathbb{R} ²^2 ³^3 ½\frac{1}{2}
¼\frac{1}{4} ¾\frac{3}{4} €\$eur_ £\$gbp_ ¥\$yen_ ¢_cents 、,_ 或_or_ 和_and_
"""
_SYMBOLS = str.maketrans({symbol[0]: symbol[1:].replace("_", " ") for symbol in _SPELT.split()})
_SYMBOLS |= dict.fromkeys(map(ord, "\u2009\u202f"), r"\,")
_WORDS = r"\\(?:text(?:normal|bf|it|rm|tt|sf)?|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname|boldsymbol)\s*"
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|pi"
_INNER = r"(?:[^{}]|\{[^{}]*\})*"
_RULES = [
    (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
    (r"\{\s*,\s*\}|,\s*\\!\s*|(?<=\d)\\,(?=\d{3}(?!\d))", ","),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?|\\!", ""),
    (r"(?<!\\)\\[,;:> ()[\]]|\\q?quad(?![a-zA-Z])|(?<!\\)~", " "),
    (r"\\(?:math(?:bb|bf)\s*\{?\s*)?R(?![a-zA-Z])\}?(?!\s*\^)|\b[aA]ll real(?: number)?s\b", r"(-\\infty, \\infty)"),
    (rf"{_WORDS}\{{([^{{}}]*)\}}", r" \1 "),
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^\\circ "),
    (r"\^\\circ +([CF])(?![a-zA-Z])", r" degrees \1"),
    (r"(?<!\\)\$([^$]*)(?<!\\)\$", r" \1 "),
    (r"\\?\$(eur|gbp|yen|)\s*(\d[\d,]*(?:\.\d+)?|\.\d+)", r"\2 \1dollars "),
    (r"\\?\$|`", ""),
    (r"\\?%|\bper ?cent(?:age)?s?\b|\bpct\b", "%"),
    (r"\^\s*\{?\s*(?:st|nd|rd|th)\s*\}?(?![a-zA-Z])", ""),
    (BOLD.pattern, r"\1"),
    (r"\*\*", "^"),
    (r"\^\s*-\s*(\w+)", r"^{-\1}"),
    (r"\\(?:leqslant|leq|le)(?![a-zA-Z])|<=", r"\\leq "),
    (r"\\(?:geqslant|geq|ge)(?![a-zA-Z])|>=", r"\\geq "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\ne(?:q)?(?![a-zA-Z])|\\not\s*=|!=", r"\\neq "),
    (r"\\(?:simeq|doteq|approxeq)(?![a-zA-Z])", r"\\approx "),
    (r"\\\\\[[\d.]+ ?[a-z]{2}\]", r"\\\\\\\\"),
    (r"\\(?:varnothing(?![a-zA-Z])|\{\s*\\\})", r"\\emptyset "),
    (r"\\lbrace(?![a-zA-Z])", r"\\{"),
    (r"\\rbrace(?![a-zA-Z])", r"\\}"),
    (r"[(\[]?\s*\\begin\{(?:array\}\s*\{[^{}]*|(?:small|[bpB])?matrix)\}", r"\\begin{pmatrix}"),
    (r"\\end\{(?:array|(?:small|[bpB])?matrix)\}\s*[)\]]?", r"\\end{pmatrix}"),
    (r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
    (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-zA-Z])", r"\\\1"),
    (r"\\log\s*_\s*(\w)(?![\w}])", r"\\log_{\1}"),
    (r"(\\log_\{[^{}]*\})\s*(\w+)", r"\1{\2}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*(\[[^][]*\])?\s*(\d+|[a-zA-Z]|\\pi(?![a-zA-Z]))", r"\\sqrt\1{\2}"),
    (rf"(?:\{{|\A)({_INNER}?)\\over(?![a-zA-Z])({_INNER})(?:\}}|\Z)", r"\\frac{\1}{\2}"),
    (rf"(?:\{{|\A)({_INNER}?)\\choose(?![a-zA-Z])({_INNER})(?:\}}|\Z)", r"\\binom{\1}{\2}"),
    (r"\\(frac|binom)(?![a-zA-Z])\s*(\w|\\pi(?![a-zA-Z]))", r"\\\1{\2}"),
    (rf"(\\(?:frac|binom)\s*\{{{_INNER}\}})\s*(\w|\\pi(?![a-zA-Z])|\\sqrt\{{[^{{}}]*\}})", r"\1{\2}"),
    (r"\\frac\s*\{", r"\\frac{"),
    (r"(?<=\{)\s+|\s+(?=\})", ""),
    (r"(?<![\w.^{}\\])(\d+)\s*(\\frac\{\d+\}\{\d+\})(?=\s*[a-zA-Z\\(])", r"(\1+\2)"),
    (r"\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?", r"\\overline{\1\2\3}"),
    (r"\\(?:overline|bar)\s*\{?(\d+)\}?", r"\\overline{\1}"),
    (r"\(?\s*\\?[pb]?mod(?![a-zA-Z])\s*\{?(\w+)\}?\s*\)?", r" \\pmod{\1}"),
    (r"(?<=\d) to (?=\d)", ":"),
    (r"\(([0-9A-Z]+)\)\s*_", r"\1_"),
    (r"(?<=[0-9A-Z])\s*_\s*\{(\d+)\}", r"_\1"),
    (r"\s+", " "),
]
_SPELLINGS = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
_END = re.compile(r"(?<![.,;: ])\s{0,9}[.,;:。]\Z|(?<=\.[a-z])\.\.\Z")  # matches "a.m..", but no ellipsis
_TOKEN = re.compile(r"\\begin(?![a-zA-Z])|\\end(?![a-zA-Z])|\\[{}]|\\[a-zA-Z]+|\\.|[()\[\]{}]")
_OPENING = {"(": 1, "[": 1, "{": 1, r"\{": 1, r"\begin": 1, ")": -1, "]": -1, "}": -1, r"\}": -1, r"\end": -1}
_SEPARATOR = re.compile(r",?\s*(?<![a-zA-Z])(?:and|or|AND|OR)(?![a-zA-Z])|[,;]")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)")
_FRACTION = re.compile(r"\\frac\{(-?\d+)\}\{(-?\d+)\}", re.ASCII)
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?P<decimal>(?:\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)"
    r"(?:\\overline\{(?P<repeating>\d{1,20})\})?"
    r"(?:e(?P<exponent>[-+]?\d{1,3})| ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?\{?(?P<power>[-+]?\d{1,3})\}?)?"
    r"|(?:(?P<whole>\d+) +(?!-))?(?P<top>-?\d+) ?/ ?(?P<bottom>-?\d+))(?P<percent> ?%)?",
    re.IGNORECASE | re.ASCII,
)
_DECIMAL = re.compile(r"\d*\.\d+", re.ASCII)
_UNIT = re.compile(
    r"(?P<value>.*[\d})!\]]|.*\\pi) ?"
    r"(?:\^\\circ|(?P<words>[^\W\d_]+(?:[/. ]+[^\W\d_]+)*))\.?(?P<power> ?\^ ?\{?[23]\}?)?"
)
_UNITS = """
cm centimeter centimetre 厘米, m meter metre 米, km kilometer kilometre 千米 公里, mm millimeter millimetre, inch
inche in, foot feet ft, mile mi, yard yd, kg kilogram 千克 公斤, g gram 克, mg milligram, lb pound, oz ounce, ton
tonne, hour hr h 小时, minute min 分钟, second sec s 秒, day 天, week, month, year yr 年, l L liter litre 升, ml mL
milliliter, gallon, calorie, degree deg 度, radian rad, dollar usd, cent, eurdollar euro, gbpdollar, yendollar yen,
yuan 元, rupee, mph, kmh kph, N newton, J joule, W watt, V volt, A amp, K kelvin, C celsius, F fahrenheit, unit, acre,
hectare, square sq, cubic cu, bit, byte, person people 人, child children, man men, woman women, box boxe, candy
candie, sandwich sandwiche, vertex vertice, fish, sheep, piece 个, way, solution, integer, number, digit, term, side,
edge, point, vote, 岁, 次, 种, m2 平方米, cm2 平方厘米, km2 平方千米 平方公里, m3 立方米, cm3 立方厘米, kWh, kW, GB, MB,
KB, Hz, Pa, mol, more, red, blue, green, yellow, white, black, different
"""
_MULTIPLIER = re.compile(  # fractions, numbers, groups, powers, functions, unit prefixes; negations; singulars in -s
    r"(?:(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand|\w+illion)th|third|hal(?:f|ve)"
    r"|quarter|one|two|three|four|five|sixe?|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven"
    r"|eigh|nine)t(?:ie|y)|hundred|thousand|\w+ill(?:ion|iard)|lakh|crore|googol\w*|myriad|dozen|score|ream|quire|gross"
    r"|brace|grosse|grand|pair|duo|trio|twin|\w+(?:some|fold|uple|[nprx]tet|plet)|duet|octet|nonet|\w*(?:dy|tr|tetr|pent"
    r"|hex|hept|oct)i?ad|\w+(?:bl|pl|lv|quar|cub)ing|double|triple|time|square|cube|power|\w*root|exponent(?:ial)?|mod"
    r"|factorial|negative|opposite|inverse|reciprocal|derivative|integral|radical|modul[uo]|\w*log(?:arithm)?|permille"
    r"|(?:arc|co)*(?:sine?|tan(?:gent)?|sec(?:ant)?|cos|csc|cot)|kilo|mega|giga|tera|peta|exa|zetta|yotta|milli"
    r"|micro|nano|pico|femto|atto|centi|deci|de[ck]?ka|deca|hecto)s?|\w*(?:ss|us|is)|not|wrong|incorrect|false"
)
_SAME_UNITS = {word: words.split()[0] for words in _UNITS.split(",") for word in words.split()} | {"/": "/", "per": "/"}


@lru_cache(maxsize=1024)  # the completions of a prompt share its gold answer
def tidy(text: str) -> str:
    """Normalise an answer: ASCII, no dollar signs, plain words for ``\\text{}``, braced fractions and roots."""
    text = _END.sub("", unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).strip())
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = _END.sub("", text.strip().rstrip("\\ ")).removeprefix("+").strip()
    while (content := enclosed(text, "{", "}")) is not None:
        text = content.strip()
    if "," not in text:
        return text
    depths = levels(re.sub(r"(?<!\\)[{}]", " ", text))  # braces only group; in brackets a comma separates elements
    return _THOUSANDS.sub(lambda m: m.group() if depths[m.start()] else m.group().replace(",", ""), text)


def squashed(text: str) -> str:
    """Reduce a tidy text to what must agree for two answers to be the same text: no spaces, words in lower case.

    In words of three letters only the first may differ in case, and none in words of two: they may be products.
    """
    text = re.sub(r"(?<![\\a-zA-Z])([a-zA-Z]{4,}|N[oO]\b|[A-Z](?=[a-z]{2}\b))", lambda word: word[1].lower(), text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)  # 5 6 is not 56


def levels(text: str) -> list[int]:
    """Count the open brackets before each character and at the end; ``\\begin`` opens and ``\\end`` closes.

    Any bracket closes any other, because [1, 2) is an interval. The last level is -1 if a bracket closes nothing.
    """
    changes = {token.end(): _OPENING.get(token.group(), 0) for token in _TOKEN.finditer(text)}
    depths = list(accumulate(changes.get(position, 0) for position in range(len(text) + 1)))
    return [*depths[:-1], -1] if min(depths) < 0 else depths


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at the separators that are outside all brackets, and strip the parts."""
    depths, parts, start = levels(text), [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def enclosed(text: str, opening: str, closing: str) -> str | None:
    """Return the text between the brackets if they enclose the whole text, else None."""
    if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
        return None
    depths = levels(text)
    whole = depths[-1] == 0 and 0 not in depths[len(opening) : -1]
    return text[len(opening) : -len(closing)] if whole else None


def items(text: str) -> list[str]:
    r"""Return the elements of a list ("1, 2 and 3"), two for each ``\pm``; other text is its own only element."""
    signed = []
    for part in filter(None, split(text, _SEPARATOR)):
        signed += [part.replace(r"\pm", sign) for sign in "+-"] if r"\pm" in part else [part]
    return [part.removeprefix("+").strip() for part in signed]


class Number(NamedTuple):
    """A plain number. ``divided``: it is written as a fraction."""

    value: Fraction
    divided: bool


def read_number(text: str) -> Number | None:
    """Read a text that is only a decimal, a fraction or a mixed number, with nothing to evaluate; else return None."""
    match = _NUMBER.fullmatch(re.sub(r"^(-?)(10 ?\^)", r"\g<1>1*\2", _FRACTION.sub(r" \1/\2", text)).strip())
    if match is None or len(text) > 60 or (match["bottom"] and int(match["bottom"]) == 0):
        return None
    if match["repeating"] and "." not in match["decimal"]:
        return None
    if match["decimal"]:
        value = Fraction(match["decimal"].replace(" ", ""))
        if repeating := match["repeating"]:
            digits = len(match["decimal"].partition(".")[2])
            value += Fraction(int(repeating), 10**digits * (10 ** len(repeating) - 1))
        value *= Fraction(10) ** int(match["exponent"] or match["power"] or 0)
    else:
        value = int(match["whole"] or 0) + Fraction(int(match["top"]), int(match["bottom"]))
    value /= (100 if match["percent"] else 1) * (-1 if match["sign"] == "-" else 1)
    return Number(value, not match["decimal"])


def last_place(text: str) -> Fraction | None:
    """Return the largest relative size of one unit in the last place of a decimal; None in sums or without decimals."""
    if re.search(r"[\d)}!|A-DF-Za-df-z] ?[-+]", text):
        return None
    decimals = [match.group() for match in _DECIMAL.finditer(text) if float(match.group()) % 1]
    sizes = [Fraction(1, 10 ** len(decimal.partition(".")[2])) / Fraction(decimal) for decimal in decimals]
    return max(sizes, default=None)


def without_unit(text: str) -> tuple[str, str]:
    """Return the value and its unit in one spelling, "" if there is none or the words may change the value."""
    match = _UNIT.fullmatch(text)
    if match is None or re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", match["value"]):
        return text, ""
    words = re.findall(r"[^\W\d_]+|/", match["words"] or "degree")
    forms = [(word, *(word.lower(), word.lower().removesuffix("s")) * (len(word) > 1)) for word in words]
    known = [next((_SAME_UNITS[form] for form in each if form in _SAME_UNITS), None) for each in forms]
    for index, word in enumerate(words):  # plurals of other nouns: 7 kazoos
        counts = re.fullmatch("[a-z]{3,}s|one_[a-z]{3,}", "one_" * (match["value"].strip() == "1") + word)
        if known[index] is None and counts and not _MULTIPLIER.fullmatch(word):
            known[index] = word
    glued = len(match["words"] or "degree") == 1 and words[0].isascii() and text[match.end("value")] != " "
    if glued or None in known or len(known) > 5 or known[-1] in ("square", "cubic", "more", "/"):  # "5m" is 5 times m
        return text, ""
    power = "".join(re.findall(r"\d", match["power"] or ""))
    if known[0] in ("square", "cubic") and len(known) > 1:
        power = "2" if known.pop(0) == "square" else "3"
    unit = " ".join(map(str, known)).replace("mph", "mile / hour").replace("kmh", "km / hour")
    return match["value"].strip(), unit + power
