"""How figures look, and how they become SVG that takes its colours from the page's style."""

from __future__ import annotations

import io
import re
from typing import Any

from pacedrl.errors import InputError

WIDTH, HEIGHT = 4.4, 2.8
"""Inches; small, so that text is legible where a figure is as wide as a telephone."""

FOREGROUND, MUTED, RULE, CARD = "#1b1f24", "#57606a", "#d8dee4", "#fefefe"
SERIES = ("#0072b2", "#b84800", "#008f68", "#cc79a7", "#c98900", "#3a9bd3", "#1b1f25", "#6b7580")
"""Okabe and Ito's colours in an order in which the first are the easiest to tell apart, darkened where they were under
3:1 on white. Every two differ by 10 or more (CIELAB) for each kind of colour blindness too."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-", (0, (5, 1.5)), (0, (1, 1)), "-")

_VARIABLES = {FOREGROUND: "--fg", MUTED: "--muted", RULE: "--line", CARD: "--card"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, start=1)
}


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files. Raises InputError naming the extra where it is missing."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("the page needs matplotlib: pip install 'pacedrl[report]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


RC = {
    "svg.hashsalt": "pacedrl",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in the name of a run is a dollar
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": FOREGROUND,
    "axes.facecolor": CARD,
    "figure.facecolor": CARD,
    "text.color": FOREGROUND,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": FOREGROUND,
    "ytick.labelcolor": FOREGROUND,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "lines.linewidth": 1.6,
}


def to_svg(figure: Any, name: str, label: str) -> str:
    """The figure as an ``<svg>`` element; ``label``, escaped already, is read aloud in its place.

    Colours become the page's custom properties. Ids, which matplotlib counts anew in every figure, begin with ``name``.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot().close(figure)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    text = re.sub(r' id="([\w-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    # A function, as a name in the label may hold what a template would read as an escape.
    opening = r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>"
    return re.sub(opening, lambda found: f'<svg {found[1]} role="img" aria-label="{label}">', text, count=1)
