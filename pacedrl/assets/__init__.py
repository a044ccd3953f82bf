"""Files that are part of the package."""

from pathlib import Path

TINY_MODEL = Path(__file__).parent / "tiny"
"""Folder of the small pretrained model, which ``tools/make_tiny.py`` makes."""
