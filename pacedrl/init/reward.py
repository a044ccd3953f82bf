"""A reward function to start from."""

from __future__ import annotations

import keyword
from pathlib import Path

from pacedrl.errors import InputError

_SKELETON = '''\
"""A reward of your own: how good a completion is, from 0 (wrong) to 1 (right)."""


def {name}(prompts, completions, answer, **columns):
    """Exact match. One number for each completion; None for one that cannot be judged.

    Called with lists of equal length: the prompts, what the model wrote, the dataset's answers, and in columns the
    rows' other columns by their names. It runs in a process of its own, under a time and a memory limit.
    """
    return [score(text_of(completion), gold) for completion, gold in zip(completions, answer, strict=True)]


def score(text, gold):
    # Change this. Partial credit (0.5 for half of it) is fine: 1 is what counts as right in an evaluation.
    # The model finds whatever gets a reward by mistake: `pacedrl doctor` tries some ways to get one for nothing.
    return float(text.strip() == str(gold).strip())


def text_of(completion):
    # Where prompts are chats, a completion is a list of messages; else it is text.
    return completion if isinstance(completion, str) else completion[-1]["content"]
'''


def missing_file(spec: str) -> Path | None:
    """The file of ``FILE.py:function`` if it is still to be written; None for any other verifier.

    Raises InputError for a name that no function can have, and for a folder that is not there.
    """
    where, _, name = spec.rpartition(":")
    path = Path(where).expanduser()
    if path.suffix != ".py" or path.exists():
        return None
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"--reward: '{name}' is no name of a function; expected FILE.py:function", docs="verifiers")
    if not path.parent.is_dir():
        raise InputError(f"--reward: there is no folder '{path.parent}' to write {path.name} to; make it first")
    return path


def skeleton(spec: str) -> str:
    """The source of a working reward function of that name."""
    return _SKELETON.format(name=spec.rpartition(":")[2])
