"""Files that ship with the package."""

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "tiny"
"""Folder of the small pretrained model; ``make_tiny.py`` beside it is how it was made."""
