"""Exceptions: bad input, and completions that a verifier cannot judge; exit codes of the command line."""

import difflib
from collections.abc import Iterable
from typing import Literal

EXIT_STOPPED = 1
"""Training had to stop, or some runs of a comparison failed."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""Ctrl-C; the state is saved."""

Page = Literal["configuration", "guide", "recipes", "scale", "serving", "verifiers"]
"""Names of the pages in docs/ to which a message may point."""


class InputError(Exception):
    """Bad input. The message is one line: what is wrong, where, what was expected, and what to do.

    ``docs`` names a page that explains more; the message then ends with "(see docs/PAGE.md)". The command line prints
    the message and exits with EXIT_BAD_INPUT; in Python it is an ordinary exception.
    """

    def __init__(self, message: str, docs: Page | None = None) -> None:
        super().__init__(message if docs is None else f"{message} (see docs/{docs}.md)")


class JudgeError(Exception):
    """The verifier cannot judge this completion; the message says why in one line."""


def did_you_mean(name: str, known: Iterable[str], before: str = "; ", cutoff: float = 0.6) -> str:
    """Return "; did you mean 'x'?" for the known name that is most similar to ``name``, or "" if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"{before}did you mean '{close[0]}'?" if close else ""
