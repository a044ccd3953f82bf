"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

AnyPath = TypeVar("AnyPath", str, Path)


def expand_home(path: AnyPath) -> AnyPath:
    """``~`` or ``~user`` at the start becomes that user's home folder; anything else stays as it is."""
    return type(path)(os.path.expanduser(path))


def home_path(text: str) -> Path:
    """A path given on the command line."""
    return expand_home(Path(text))
