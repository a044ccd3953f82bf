"""Finds a completion's code: the fenced block that is its answer."""

import re
from collections.abc import Collection

_PYTHON = ("python", "py", "python3")
_FENCE = re.compile(r"([ \t]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?)(`{3,}|~{3,})(.*)")
_DEFINED = re.compile(r"^(?:(?:async +)?def|class) +(\w+)|^(\w+) *(?::[^=\n]*)?=(?!=)", re.MULTILINE)


Block = tuple[str, str]
"""A block's language and its code."""


def extract(text: str, wanted: Collection[str] = ()) -> str:
    """Return the code of a completion: a block fenced as Python, else a fenced block, else all of it.

    Of several blocks, the last one that defines a name in ``wanted`` counts, because a usage example often follows the
    solution; if none does, or no names are given, the last one counts. Fences are CommonMark's, but may be indented.
    An unclosed fence counts if it says that Python follows; otherwise it only ends the code before it.
    """
    blocks, before, unclosed = _split(text)
    if unclosed is not None and unclosed[0] in _PYTHON:
        blocks.append(unclosed)
    python = [code for language, code in blocks if language in _PYTHON]
    codes = python or [code for _, code in blocks]
    if codes:
        return next((code for code in reversed(codes) if _defines(code, wanted)), codes[-1])
    return text if unclosed is None else before


def _defines(code: str, wanted: Collection[str]) -> bool:
    return any(name in wanted for names in _DEFINED.findall(code) for name in names if name)


def _split(text: str) -> tuple[list[Block], str, Block | None]:
    """Return the closed blocks, the text before the last fence that opened one, and the unclosed block, if any."""
    blocks: list[Block] = []
    lines: list[str] = []
    before = ""
    opening: tuple[int, str, str] | None = None
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if opening is None and fence is not None and not (fence[2][0] == "`" and "`" in fence[3]):
            before, lines = "".join(f"{each}\n" for each in lines), []
            language = fence[3].split()[0].lower() if fence[3].strip() else ""
            opening = len(fence[1]), fence[2], language
        elif opening is not None and fence is not None and _closes(fence, *opening[:2]):
            blocks.append((opening[2], "".join(f"{each}\n" for each in lines)))
            opening, lines = None, []
        else:  # without as much of its indentation as the fence has
            indent = opening[0] if opening else 0
            lines.append(line[min(indent, len(line) - len(line.lstrip(" \t"))) :])
    unclosed = (opening[2], "\n".join(lines).removesuffix(opening[1])) if opening else None
    return blocks, before, unclosed


def _closes(fence: re.Match[str], indent: int, opening: str) -> bool:
    """Tell whether a fence ends a block. One that is indented further, such as in a docstring, does not."""
    is_bare = not fence[3].strip() and not fence[1].strip()
    return is_bare and len(fence[1]) <= indent + 3 and fence[2][0] == opening[0] and len(fence[2]) >= len(opening)
