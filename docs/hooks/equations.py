"""Mathematics as MathML, made when the site is built: browsers draw it by themselves, without a script."""

from __future__ import annotations

import html as entities
import re

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
NUMBER = re.compile(r"\\tag\{(\d+)\}")


def to_mathml(html: str) -> str:
    """Replace what pymdownx.arithmatex marked; a display with ``\\tag{N}`` shows its number at the right."""
    return MARKED.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    latex = entities.unescape(match["latex"]).strip()
    if match["open"] == "(":
        return _spaced(convert(latex))
    if "\\begin" in latex:
        raise ValueError(f"latex2mathml draws no alignment; write the lines as equations of their own: {latex}")
    number = NUMBER.search(latex)
    shown = f"<span>({number[1]})</span>" if number else ""
    mathml = _spaced(convert(NUMBER.sub("", latex), display="block"))
    name = f' id="eq-{number[1]}"' if number else ""
    return f'<div class="equation"{name}>{mathml}{shown}</div>'


def _spaced(mathml: str) -> str:
    """A thin space after a function's name, as TeX sets it, and a hat that stands above its letter."""
    spaced = re.sub(r"(<mi>(?:log|exp|min|max)</mi>)(?!<mo)", r'\1<mspace width="0.167em"/>', mathml)
    return spaced.replace("<mo>&#x0005E;</mo>", "<mo>&#x002C6;</mo>")
