"""Built-in string skills: small exact puzzles on digits, with which a whole run takes one core.

A prompt is ``skill:digits=`` (``add:381+204=`` for two operands), and the answer has as many digits as one operand.
Nothing carries from one digit to the next, so the difficulty of a skill's prompts depends only on their length.
"""

import hashlib
import random
import string
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

from pacedrl.errors import InputError

SPLITS = ("train", "test")
MIN_DIGITS, MAX_DIGITS = 2, 8
"""Number of digits of an operand; all lengths in this range are equally likely."""
MAX_ROWS = 100_000
"""Maximum number of rows of a call, far below the number of distinct prompts, so that drawing always ends."""


def _add(operands: str) -> str:
    left, right = operands.split("+")
    return "".join(str((int(a) + int(b)) % 10) for a, b in zip(left, right, strict=True))


SKILLS: dict[str, Callable[[str], str]] = {
    "copy": lambda digits: digits,
    "reverse": lambda digits: digits[::-1],
    "sort": lambda digits: "".join(sorted(digits)),
    "negate": lambda digits: "".join(str(9 - int(digit)) for digit in digits),
    "add": _add,
    "rotate": lambda digits: digits[1:] + digits[:1],
    "double": lambda digits: "".join(str(2 * int(digit) % 10) for digit in digits),
}
"""Maps each skill's name to its solution. ``add`` takes two operands and drops the carries."""


def skill_rows(
    split: str = "train", *, skills: list[str] | None = None, size: int = 1024, seed: int = 0, **unknown: Any
) -> list[dict[str, str]]:
    """Return ``size`` distinct rows with the columns ``prompt``, ``answer`` and ``skill``; the skills take turns.

    The same arguments give the same rows. A hash of the prompt decides whether it belongs to ``train`` or ``test``, so
    the splits share no prompt, whatever the seeds. ``skills`` defaults to all of ``SKILLS``. Raises InputError.
    """
    if unknown:
        raise InputError(f"skills: unknown option '{next(iter(unknown))}': known options are skills, size, seed")
    if split not in SPLITS:
        raise InputError(f"skills: unknown split '{split}': known splits are {', '.join(SPLITS)}")
    names = list(SKILLS) if skills is None else skills
    if not isinstance(names, list) or not names:
        raise InputError(f"skills: expected a list of names out of {', '.join(SKILLS)}, got {skills!r}")
    for name in names:
        if name not in list(SKILLS):  # a list, because names from a file may be unhashable
            raise InputError(f"skills: unknown skill '{name}': known skills are {', '.join(SKILLS)}")
    if not isinstance(size, int) or not 1 <= size <= MAX_ROWS:
        raise InputError(f"skills: size must be a whole number from 1 to {MAX_ROWS}, got {size!r}")
    if not isinstance(seed, int):
        raise InputError(f"skills: seed must be a whole number, got {seed!r}")
    rng = random.Random(f"{split}:{seed}")
    rows: dict[str, dict[str, str]] = {}
    for name in islice(cycle(names), size):
        row = draw_row(split, name, rng)
        while row["prompt"] in rows:
            row = draw_row(split, name, rng)
        rows[row["prompt"]] = row
    return list(rows.values())


def draw_row(split: str, skill: str, rng: random.Random) -> dict[str, str]:
    """Return a random row of a skill; repeated calls may return the same row."""
    while True:
        length = rng.randint(MIN_DIGITS, MAX_DIGITS)
        operands = "+".join("".join(rng.choices(string.digits, k=length)) for _ in range(2 if skill == "add" else 1))
        prompt = f"{skill}:{operands}="
        if split_of(prompt) == split:
            return {"prompt": prompt, "answer": SKILLS[skill](operands), "skill": skill}


def split_of(prompt: str) -> str:
    """Return the split that a prompt belongs to: one prompt in ten is for testing."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0 else "train"
