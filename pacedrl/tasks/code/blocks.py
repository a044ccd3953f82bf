"""Finds a completion's code: the fenced block that is its answer."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

_PYTHON = ("python", "py", "python3")
_FENCE = re.compile(r"([ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})(.*)")
_DEFINED = re.compile(r"^(?:(?:async +)?def|class) +(\w+)|^(\w+) *(?::[^=\n]*)?=(?!=)", re.MULTILINE)


class _Block(NamedTuple):
    language: str
    code: str


def extract(text: str, wanted: Collection[str] = ()) -> str:
    """The code of a completion: a block fenced as Python, else a fenced block, else all of it.

    Of several blocks it is the last one that defines one of the names ``wanted``, because a usage example often follows
    the solution; where none does, or no names are given, it is the last one. Fences are CommonMark's, but may be
    indented. A fence left open counts where it says that Python follows; where it does not, it ends the code before it.
    """
    blocks, before, rest = _split(text)
    if rest is not None and rest.language in _PYTHON:
        blocks.append(rest)
    python = [block for block in blocks if block.language in _PYTHON]
    candidates = [block.code for block in python or blocks]
    if candidates:
        return next((code for code in reversed(candidates) if _defines(code, wanted)), candidates[-1])
    return text if rest is None else before


def _defines(code: str, wanted: Collection[str]) -> bool:
    return any(name in wanted for names in _DEFINED.findall(code) for name in names if name)


def _split(text: str) -> tuple[list[_Block], str, _Block | None]:
    """The closed blocks, the text before the last fence that opened one, and the block that is still open, if any."""
    blocks: list[_Block] = []
    lines: list[str] = []
    before = ""
    opening: tuple[int, str, str] | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if opening is None:
            if fence is None or (fence[2][0] == "`" and "`" in fence[3]):
                lines.append(line)
                continue
            before, lines = "".join(f"{each}\n" for each in lines), []
            words = fence[3].split()
            opening = len(fence[1]), fence[2], words[0].lower() if words else ""
        elif fence is not None and _closes(fence, *opening[:2]):
            blocks.append(_Block(opening[2], "".join(f"{each}\n" for each in lines)))
            opening, lines = None, []
        else:
            lines.append(_dedented(line, opening[0]))
    rest = _Block(opening[2], "\n".join(lines).removesuffix(opening[1])) if opening else None
    return blocks, before, rest


def _closes(fence: re.Match[str], indent: int, opening: str) -> bool:
    """Whether a fence ends a block: in a docstring that is indented further, it does not."""
    is_bare = not fence[3].strip() and not fence[1].strip()
    return is_bare and len(fence[1]) <= indent + 3 and fence[2][0] == opening[0] and len(fence[2]) >= len(opening)


def _dedented(line: str, width: int) -> str:
    """The line without as much of its indentation as the fence had."""
    return line[min(width, len(line) - len(line.lstrip(" \t"))) :]
