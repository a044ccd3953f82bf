"""Extracts code blocks and commands from the documentation's pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if not path.name.endswith("template.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=fence)[ ]*$", re.DOTALL | re.MULTILINE
)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?:    [^\n]*\n(?:\n(?=    ))?)+)")
IN_LINE = re.compile(r"(?<!`)`((?:pacedrl|torchrun|make|python|uv) [^`]+)`(?!`)")
PROGRAMS = ("pacedrl", "torchrun", "python", "python3", "make", "pip", "for", "vllm", "examples/verl/run.sh")
"""An indented block is a block of commands if one of its lines starts with one of these."""


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One shell command without comments, with continued lines joined."""

    where: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, match.start()) + 1, match["language"], match["text"])


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands in fenced shell blocks, in indented blocks of commands, and between single backticks."""
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language in ("sh", "console"):
            yield from _lines(block.where, block.text)
    prose = FENCE.sub("", text)
    for match in INDENTED.finditer(prose):
        body = re.sub(r"^    ", "", match[1], flags=re.MULTILINE)
        if _is_shell(body):
            yield from _lines(str(page.relative_to(ROOT)), body)
    for match in IN_LINE.finditer(INDENTED.sub("", prose)):
        yield from _lines(str(page.relative_to(ROOT)), " ".join(match[1].split()))


def _is_shell(body: str) -> bool:
    return any(re.match(rf"(\w+=\S+ )*({'|'.join(PROGRAMS)})(\s|$)", line) for line in body.splitlines())


def _lines(where: str, body: str) -> Iterator[Command]:
    for line in body.replace("\\\n", " ").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        yield from (Command(where, part) for part in text.split(" && ") if part)
