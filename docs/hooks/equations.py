"""Converts mathematics to MathML when the site is built, so that browsers need no script to render it."""

from __future__ import annotations

import html as entities
import re

from latex2mathml.converter import convert

MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
NUMBER = re.compile(r"\\tag\{(\d+)\}")


def to_mathml(html: str) -> str:
    """Replace formulas marked by pymdownx.arithmatex; ``\\tag{N}`` puts a displayed formula's number at its right."""
    return MARKED.sub(_mathml, html)


def _mathml(match: re.Match[str]) -> str:
    latex = entities.unescape(match["latex"]).strip()
    if match["open"] == "(":
        return _spaced(convert(latex))
    if "\\begin" in latex:
        raise ValueError(f"latex2mathml cannot align equations; write the lines as separate equations: {latex}")
    number = NUMBER.search(latex)
    shown = f"<span>({number[1]})</span>" if number else ""
    mathml = _spaced(convert(NUMBER.sub("", latex), display="block"))
    name = f' id="eq-{number[1]}"' if number else ""
    return f'<div class="equation"{name}>{mathml}{shown}</div>'


def _spaced(mathml: str) -> str:
    """Add a thin space after function names, like TeX, and replace circumflexes by hats above their letter."""
    spaced = re.sub(r"(<mi>(?:log|exp|min|max)</mi>)(?!<mo)", r'\1<mspace width="0.167em"/>', mathml)
    return spaced.replace("<mo>&#x0005E;</mo>", "<mo>&#x002C6;</mo>")
