"""Built-in string skills: small exact puzzles on digits, enough to exercise a whole run on one core.

A prompt is ``skill:digits=`` (``add:381+204=`` for two operands) and the answer is digits again, as many as one operand
has. Nothing carries from one digit to the next, so within a skill difficulty is a matter of length.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from pacedrl.errors import InputError

SPLITS = ("train", "test")
MIN_DIGITS, MAX_DIGITS = 2, 8
"""Digits of an operand; every length between them is equally likely."""
MAX_ROWS = 100_000
"""Rows one call may ask for: few enough beside the distinct prompts that drawing without repetition always ends."""


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
"""Each skill's name and how to solve it. ``add`` takes two operands and drops the carries."""


def skill_rows(
    split: str = "train", *, skills: list[str] | None = None, size: int = 1024, seed: int = 0, **unknown: Any
) -> list[dict[str, str]]:
    """``size`` distinct rows with the columns ``prompt``, ``answer`` and ``skill``, the skills taking turns.

    The same arguments give the same rows. A prompt belongs to ``train`` or to ``test`` by a hash of its text, so the
    two share no prompt whatever the seeds. ``skills`` defaults to all of ``SKILLS``. Raises InputError.
    """
    if unknown:
        raise InputError(f"skills: unknown option '{next(iter(unknown))}': known options are skills, size, seed")
    if split not in SPLITS:
        raise InputError(f"skills: unknown split '{split}': known splits are {', '.join(SPLITS)}")
    names = list(SKILLS) if skills is None else skills
    if not isinstance(names, list) or not names:
        raise InputError(f"skills: expected a list of names out of {', '.join(SKILLS)}, got {skills!r}")
    for name in names:
        if name not in list(SKILLS):  # a list, for names from a file may be unhashable
            raise InputError(f"skills: unknown skill '{name}': known skills are {', '.join(SKILLS)}")
    if not isinstance(size, int) or not 1 <= size <= MAX_ROWS:
        raise InputError(f"skills: size must be a whole number from 1 to {MAX_ROWS}, got {size!r}")
    if not isinstance(seed, int):
        raise InputError(f"skills: seed must be a whole number, got {seed!r}")
    return list(islice(_distinct_rows(split, names, random.Random(f"{split}:{seed}")), size))


def _distinct_rows(split: str, names: list[str], rng: random.Random) -> Iterator[dict[str, str]]:
    seen: set[str] = set()
    while True:
        for name in names:
            row = draw_row(split, name, rng)
            while row["prompt"] in seen:
                row = draw_row(split, name, rng)
            seen.add(row["prompt"])
            yield row


def draw_row(split: str, skill: str, rng: random.Random) -> dict[str, str]:
    """One random row of a skill; repeated calls may repeat a row."""
    while True:
        length = rng.randint(MIN_DIGITS, MAX_DIGITS)
        operands = "+".join(_digits(length, rng) for _ in range(2 if skill == "add" else 1))
        prompt = f"{skill}:{operands}="
        if split_of(prompt) == split:
            return {"prompt": prompt, "answer": SKILLS[skill](operands), "skill": skill}


def split_of(prompt: str) -> str:
    """Which split a prompt belongs to: one in ten is for testing."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0 else "train"


def _digits(length: int, rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=length))
