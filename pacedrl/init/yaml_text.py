"""YAML with comments."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

WIDTH = 110
COMMENTS_FROM = 34


class Line(NamedTuple):
    """A setting and why it is what it is."""

    value: Any
    comment: str = ""


class Idea(NamedTuple):
    """A setting that is not made: written as a comment, ready to be uncommented."""

    value: Any
    comment: str


Tree = Mapping[str, "Line | Idea | Tree"]


def settings(tree: Tree) -> dict[str, Any]:
    """What is set, without the comments."""
    return {
        name: node.value if isinstance(node, Line) else settings(node)
        for name, node in tree.items()
        if not isinstance(node, Idea)
    }


def text(tree: Tree) -> str:
    """The tree as YAML, a comment beside its setting where there is room, else above it."""
    return "\n".join(line for name, node in tree.items() for line in _lines(name, node, "")) + "\n"


def comment(words: str, indent: str = "") -> list[str]:
    """A comment in lines that are not too long."""
    return textwrap.wrap(words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _lines(name: str, node: Line | Idea | Tree, indent: str) -> list[str]:
    if not isinstance(node, Line | Idea):
        inside = [line for key, child in node.items() for line in _lines(key, child, indent + "  ")]
        return [*([] if indent else [""]), f"{indent}{name}:", *inside]
    setting = f"{indent}{'# ' * isinstance(node, Idea)}{name}: {_value(node.value)}"
    beside = f"{setting:<{COMMENTS_FROM}}  # {node.comment}"
    if not node.comment or len(beside) <= WIDTH:
        return [beside if node.comment else setting]
    return [*comment(node.comment, indent), setting]


def _value(value: Any) -> str:
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)  # YAML's own quotes would take several lines
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9)
    return dumped.removesuffix("\n").removesuffix("\n...")
