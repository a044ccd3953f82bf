"""The site builds strictly, fetches nothing from elsewhere, and its references are complete."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from docs_blocks import ROOT
from pydantic import BaseModel
from test_docs import module

from pacedrl import cli
from pacedrl.config import Config

LOADS = dict.fromkeys(("script", "img", "iframe", "source", "video"), "src") | {"link": "href", "object": "data"}


class Document(HTMLParser):
    """The resources that a page loads, its links, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.tags.append(tag)
        self.ids.update(filter(None, (of.get("id"), of.get("name"))))
        if tag in LOADS and of.get(LOADS[tag]):
            self.loads.append(str(of[LOADS[tag]]))
        if tag == "a" and of.get("href"):
            self.links.append(str(of["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does, into another folder; unreachable proxies keep it off the network."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | nowhere | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def documents(site: Path) -> dict[Path, Document]:
    return {path: Document(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_of_the_nav_is_there(site: Path) -> None:
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]

    def leaves(entries: list[dict[str, object]]) -> Iterator[str]:
        for entry in entries:
            (value,) = entry.values()
            yield from leaves(value) if isinstance(value, list) else [str(value)]

    pages = list(leaves(nav))
    assert len(pages) == 22
    assert all((site / page).with_suffix(".html").is_file() for page in pages)


def test_nothing_is_loaded_from_elsewhere(site: Path, documents: dict[Path, Document]) -> None:
    for path, document in documents.items():
        away = [url for url in document.loads if urlsplit(url).scheme not in ("", "data") or url.startswith("//")]
        assert away == [], path
        assert "mermaid" not in document.text  # the theme would fetch its script
    for path in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")) == [], path


def test_every_link_within_the_site_leads_somewhere(site: Path, documents: dict[Path, Document]) -> None:
    for path, document in documents.items():
        if path.name == "404.html":  # whose links are to the root of the server
            continue
        for link in document.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target in documents:
                assert unquote(parts.fragment) in documents[target].ids, f"{path.relative_to(site)}: {link}"


def test_mathematics_is_mathml(documents: dict[Path, Document], site: Path) -> None:
    method = documents[site / "method.html"]
    numbered = {name for name in method.ids if re.fullmatch(r"eq-\d+", name)}
    assert len(numbered) == (ROOT / "docs/method.md").read_text(encoding="utf-8").count("\\tag{")
    for path, document in documents.items():
        drawn = re.findall(r"<math.*?</math>", document.text, re.DOTALL)
        unknown = [one for one in drawn if "\\" in one or "&#x0005C;" in one or "<mi>&</mi>" in one]
        assert unknown == [], path  # commands that were not understood
        assert "arithmatex" not in document.text, path
    for name in ("method", "recipes"):
        source, text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8"), documents[site / f"{name}.html"].text
        assert text.count('display="block"') == source.count("$$") / 2 > 3
        assert text.count('display="inline"') == len(re.findall(r"(?<!\$)\$[^$]+\$(?!\$)", source)) > 20


def test_a_matrix_of_equations_is_refused() -> None:
    equations = module("hooks", "equations")
    with pytest.raises(ValueError, match="aligned"):
        equations.to_mathml(r'<div class="arithmatex">\[\begin{aligned} a &amp;= b \end{aligned}\]</div>')


def settings(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the names of all settings and whether each is a section."""
    for name, field in model.model_fields.items():
        inner = list(sections(field.annotation))
        yield f"{path}{name}", bool(inner)
        for section in inner:
            yield from settings(section, f"{path}{name}.")


def sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from sections(part)


def test_the_reference_pages_are_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs/reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for name, text in reference.pages().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run: python docs/reference.py"


HEADINGS = ("objective.name", "estimator.name", "gate.name", "partition.name")
"""Settings whose values are headings of the page, not rows of a table."""


def test_the_configuration_reference_describes_every_setting(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)]
    described = {re.sub(r"<.*?>", "", name): cells for name, *cells in filter(None, rows)}
    for name, is_section in settings(Config):
        if name.startswith("data.eval.") or name in HEADINGS:
            continue  # data.eval has the form of data.train
        if is_section and "." not in name:
            assert f'id="{name}"' in text
            continue
        kind, default, description = described[name]
        assert kind, name
        assert default, name
        assert len(description) > 5, name
    assert described["optimizer.learning_rate"][1] == "<code>1e-06</code>"
    assert described["objective.beta"][0] == "number, more than 0"


def test_the_reference_of_the_command_line_has_every_verb_and_option(site: Path) -> None:
    text = (site / "cli.html").read_text(encoding="utf-8")
    for action in cli.build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, verb in action.choices.items():
                assert f'id="pacedrl-{name}"' in text
                assert all(option in text for one in verb._actions for option in one.option_strings if option != "-h")


def test_the_python_reference_has_what_is_public(documents: dict[Path, Document], site: Path) -> None:
    ids = documents[site / "reference/python.html"].ids
    import pacedrl.method

    homes = ("beliefs", "closed_form", "estimator", "objectives", "partition", "scheduler", "selection")
    found = {name for name in pacedrl.method.__all__ if any(f"pacedrl.method.{home}.{name}" in ids for home in homes)}
    assert found == set(pacedrl.method.__all__)
    for name in ("training.trainer.Trainer.train", "config.load_config", "tasks.verifiers.Verdict"):
        assert f"pacedrl.{name}" in ids
    assert {f"pacedrl.integrations.{other}.PacedTrainer" for other in ("trl", "verl")} <= ids
