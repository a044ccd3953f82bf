"""Paths as users write them, and atomic writes."""

import os
from pathlib import Path
from typing import TypeVar

AnyPath = TypeVar("AnyPath", str, Path)


def expand_home(path: AnyPath) -> AnyPath:
    """Replace a leading ``~`` or ``~user`` with that user's home folder."""
    return type(path)(os.path.expanduser(path))


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically: after a crash, it holds the old or the new text."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
