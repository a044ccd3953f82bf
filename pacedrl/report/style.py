"""How figures look in every page, and how they become SVG."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from pacedrl.text import plain

WIDTH, HEIGHT = 4.4, 2.8
"""Inches; small, so that text is legible if a figure is as wide as a phone."""

FOREGROUND, MUTED, RULE, CARD = "#1b1f24", "#57606a", "#d8dee4", "#fefefe"
SERIES = ("#0072b2", "#b84800", "#008f68", "#cc79a7", "#c98900", "#3a9bd3", "#1b1f25", "#6b7580")
"""Okabe and Ito's colours, the easiest to tell apart first, darkened where their contrast with white was under 3:1. Any
two differ by 10 or more (CIELAB), also for each kind of colour blindness."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), "-", (0, (5, 1.5)), (0, (1, 1)), "-")
SVG_DASHES = ("none", "5 2", "1.5 1.5", "6 2 1.5 2", "none", "5 2", "1.5 1.5", "none")
"""``DASHES`` as the legends of a page draw them."""
BLACK, BLUE, ORANGE, GREEN, PURPLE, GREY, LIGHT_GREY = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999", "#BBBBBB",
)  # fmt: skip
"""Okabe and Ito's colours and greys, for figures in separate files."""

_VARIABLES = {FOREGROUND: "--fg", MUTED: "--muted", RULE: "--line", CARD: "--card"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, start=1)
}

FILE: dict[str, Any] = {
    "svg.hashsalt": "pacedrl",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
}
"""Style of figures in separate files, black on white."""
PAGE: dict[str, Any] = FILE | {
    "text.parse_math": False,  # a dollar in the name of a run is a dollar
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
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
"""Style of figures within a page, whose colours become the page's own."""


@contextmanager
def styled(style: Mapping[Any, Any] = PAGE) -> Iterator[None]:
    """Draw figures, and turn them into SVG, in this context."""
    import matplotlib

    with matplotlib.rc_context(dict(style)):
        yield


def new_axes(x: str, y: str) -> tuple[Any, Any]:
    """Return a figure of the page's size and its labelled axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.margins(x=0.02)
    axes.xaxis.set_major_formatter("{x:,.10g}")
    if x == "step" or x == "completions generated":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if x == "step" else 4, integer=True))
    return figure, axes


def new_grid(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Return a figure for a separate file, in inches, and its panels as an array [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=options.pop("layout", None))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Any, path: Path) -> None:
    """Write the figure as SVG, without a date: equal figures give equal bytes."""
    figure.savefig(path, metadata={"Date": None})


def to_svg(figure: Any, name: str, label: str) -> Markup:
    """Return the figure as an ``<svg>`` element, which screen readers read as ``label``.

    Colours become the page's custom properties. Ids, which matplotlib counts anew in every figure, begin with ``name``.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.S)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", text)
    spoken = escape(plain(label))
    # A function, because a name in the label may hold what a replacement string would read as an escape.
    opening = r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>"
    return Markup(re.sub(opening, lambda found: f'<svg {found[1]} role="img" aria-label="{spoken}">', text, count=1))
