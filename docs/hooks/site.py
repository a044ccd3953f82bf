"""Adds pages outside docs/ to the site: the examples, and the source files that pages link to.

Pages link to files by relative path, as on a code host. These hooks turn such links into links to the site's pages. A
linked file outside docs/ gets its own page below source/.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from equations import to_mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"examples/paper.md": "examples/paper/README.md", "examples/verl.md": "examples/verl/README.md"}
"""Pages of the site whose text is outside docs/."""
LANGUAGES = {".py": "python", ".sh": "sh", ".yaml": "yaml", ".json": "json", ".md": "markdown"}
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs["pymdownx.snippets"]["base_path"] = [str(ROOT)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    texts |= {home: (ROOT / home).read_text(encoding="utf-8") for home in ELSEWHERE.values()}
    pages = {uri: texts[home] for uri, home in ELSEWHERE.items()}
    for home, text in texts.items():
        for target in _links(home, text):
            uri = _uri(target)
            if uri.startswith("source/"):
                pages[uri] = _source_page(target)
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    home = ELSEWHERE.get(uri, f"docs/{uri}")

    def turned(match: re.Match[str]) -> str:
        target = posixpath.relpath(_uri(_resolved(home, match[1])), posixpath.dirname(uri) or ".")
        return f"]({target}{match[2] or ''})"

    return _outside_code(markdown, lambda text: LINK.sub(turned, text))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return to_mathml(html)


def _links(home: str, text: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for part in FENCED.split(text)[::2]:
        yield from (_resolved(home, match[1]) for match in LINK.finditer(part))


def _resolved(home: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _uri(target: str) -> str:
    """Return the path on the site of a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return next((uri for uri, home in ELSEWHERE.items() if home == target), f"source/{target}.md")


def _source_page(target: str) -> str:
    path = ROOT / target
    text = path.read_text(encoding="utf-8")  # a missing file fails the build: the link is broken
    head = f"---\nsearch: {{exclude: true}}\n---\n# {path.name}\n\n`{target}`\n\n"
    fence = "`" * 6
    return f"{head}{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}{fence}\n"


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = FENCED.split(markdown)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)
