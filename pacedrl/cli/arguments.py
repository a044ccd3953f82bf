"""Arguments and checks that several verbs share."""

import argparse
from pathlib import Path
from typing import TypeVar

from pacedrl.errors import InputError
from pacedrl.paths import expand_home

Number = TypeVar("Number", int, float)


def home_path(text: str) -> Path:
    """A path in which a leading ``~`` stands for the home folder."""
    return expand_home(Path(text))


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the configuration file."""
    parser.add_argument("config", type=home_path, metavar="CONFIG.yaml", help="the configuration")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the settings that override the configuration."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override a setting")


def positive(option: str, value: Number) -> Number:
    """Return the value of a numeric option. Raises InputError unless it is above 0."""
    if not value > 0:
        raise InputError(f"{option}: expected more than 0, got {value:g}")
    return value


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers in ``1,8,32``. Raises InputError for any other form."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option}: expected whole numbers separated by commas, such as 1,8,32, got '{text}'"
        ) from None
