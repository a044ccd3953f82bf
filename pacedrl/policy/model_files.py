"""Checking that the files of a model or a checkpoint can be read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open


def first_damaged(folder: Path) -> str | None:
    """Return the first JSON or safetensors file in ``folder`` that cannot be read, and why; None if there is none."""
    problems = ((path, damage(path)) for path in sorted(folder.iterdir()))
    return next((f"{path.name} {problem}" for path, problem in problems if problem is not None), None)


def damage(path: Path) -> str | None:
    """Say what is wrong with a JSON or safetensors file; None if it can be read, or is neither.

    Of a safetensors file the header and the length are checked, not the values.
    """
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                pass
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except SafetensorError as error:
        return f"is cut off or damaged ({error})"
    except ValueError as error:
        return f"is cut off or damaged (not JSON: {error})"
    return None
