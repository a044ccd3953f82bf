"""The one exception that means "your input, not our bug", and the exit codes of the command line."""

from __future__ import annotations

from typing import Literal

EXIT_STOPPED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

Page = Literal["configuration", "guide", "recipes", "scale", "serving", "verifiers"]
"""The pages of docs/ that a message may point to."""


class InputError(Exception):
    """Bad input, said in one line: what is wrong, where, what was expected and what to do.

    ``docs`` names the page that explains more, where one helps; the line then ends "(see docs/PAGE.md)". The command
    line prints the message and exits with code 2; from Python it is an ordinary exception.
    """

    def __init__(self, message: str, docs: Page | None = None) -> None:
        super().__init__(message if docs is None else f"{message} (see docs/{docs}.md)")
