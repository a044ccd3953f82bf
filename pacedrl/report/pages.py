"""Builds every HTML page: one file that opens from disk and asks nothing of the network.

Every value in a template is shown on one line and escaped, unless it is ``Markup``.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pacedrl.errors import InputError
from pacedrl.text import plain

HERE = Path(__file__).parent


def require_page(extra: str = "report", hint: str = "") -> None:
    """Raise InputError, which names the extra to install and ends with ``hint``, if a library of pages is missing."""
    try:
        import markdown  # noqa: F401
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise InputError(f'the page needs {error.name}: pip install "pacedrl[{extra}]"{hint}') from None


def build_page(
    template: str, title: str, styles: Sequence[str], scripts: Sequence[str] = (), live: bool = False, **values: object
) -> str:
    """Fill in a template that extends base.html.

    ``styles`` and ``scripts`` name files of the folder assets. Only these scripts may run. With ``live`` they may also
    ask the server that the page came from.
    """
    texts = [asset(name) for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    css = Markup("".join(map(asset, styles)))
    return fill(template, title=title, policy=policy, css=css, scripts=[Markup(text) for text in texts], **values)


def article(text: str, folder: Path, title: str) -> str:
    """Build a page from Markdown. The figures that it names are read from the folder into the page."""

    def embedded(match: re.Match[str]) -> str:
        data = base64.b64encode((folder / match[1]).read_bytes()).decode("ascii")
        return f'src="data:image/svg+xml;base64,{data}"'

    body = re.sub(r'src="([\w.-]+\.svg)"', embedded, from_markdown(text, "tables"))
    return build_page("article.html", title, ["article.css"], text=Markup(body))


def from_markdown(text: str, *extensions: str) -> Markup:
    """Convert Markdown to HTML."""
    import markdown

    return Markup(markdown.markdown(text, extensions=extensions))


def fill(template: str, **values: object) -> str:
    """Fill in any template: HTML, or Markdown with HTML in it."""
    return _templates().get_template(template).render(values)


@cache
def asset(name: str) -> str:
    """Return a style sheet or a script."""
    text = (HERE / "assets" / name).read_text(encoding="utf-8")
    return text.replace("DARK", asset("dark.css")) if name == "style.css" else text


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else plain(value),
        trim_blocks=True,
        lstrip_blocks=True,
    )
