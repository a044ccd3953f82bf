"""Text of unknown origin, made safe to show."""

from __future__ import annotations


def plain(text: object) -> str:
    """Return a text in one line; characters that control or turn the direction of writing appear as their codes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(text))
