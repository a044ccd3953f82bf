"""The choice of a verifier for unknown data, and a reward function for the user to start from."""

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError, JudgeError
from pacedrl.tasks.code.verifier import find_tests
from pacedrl.tasks.completions import without_solution
from pacedrl.types import Prompt

LONGEST_EXACT = 80
"""Maximum length in characters of an answer that a completion can be expected to equal."""
NUMERIC_DIGITS = 6
"""Number of digits that the verifier ``numeric`` compares."""

_NUMBER = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?: ?/ ?\d+)?%?")
_LEADING_ZERO = re.compile(r"[-+]?0\d")
_LATEX = re.compile(r"\\[a-zA-Z({\[]|\$.+\$|\^|\bsqrt\b")
_REWARD_FUNCTION = '''\
"""A reward of your own: how good a completion is, from 0 (wrong) to 1 (right)."""


def {name}(prompts, completions, answer, **columns):
    """Exact match. Returns one number for each completion, or None if it cannot be judged.

    The arguments are lists of equal length: the prompts, the model's completions, the answers of the dataset, and in
    columns the other columns of the rows by name. It runs in a process of its own, with a time and a memory limit.
    """
    return [score(text_of(completion), gold) for completion, gold in zip(completions, answer, strict=True)]


def score(text, gold):
    # Change this. Partial credit (0.5 for half of it) is fine; evaluations count only 1 as right.
    # The model will find every mistake that is rewarded: `pacedrl doctor` tries some ways to get a reward for nothing.
    return float(text.strip() == str(gold).strip())


def text_of(completion):
    # For chat prompts, a completion is a list of messages; otherwise it is text.
    return completion if isinstance(completion, str) else completion[-1]["content"]
'''


@dataclass(frozen=True)
class Choice:
    """A verifier, the reason for it in words, and a ``caution`` if no built-in verifier suits the data well."""

    verifier: str
    why: str
    caution: str = ""


def propose(prompts: Sequence[Prompt]) -> Choice | None:
    """Choose the verifier for the prompts' answers or tests; None if there are neither."""
    if all(map(_has_tests, prompts)):
        return Choice("code", "the rows hold tests, which are run on the completion's code in a sandbox")
    answers = [prompt.answer for prompt in prompts if prompt.answer is not None]
    if not answers:
        return None
    if all(isinstance(answer, dict) for answer in answers):
        return _game(answers)
    texts = [without_solution(answer) for answer in answers]
    example = max(texts, key=len)
    if any(map(_LATEX.search, texts)):
        latex = next(filter(_LATEX.search, texts))
        return Choice("math", f"answers are mathematics, such as {shown(latex)}; it expects them in \\boxed{{}}")
    if all(text and _NUMBER.fullmatch(text) for text in texts):
        return _number(texts)
    if len(example) > LONGEST_EXACT or any("\n" in text for text in texts):
        return Choice(
            "exact",
            f"answers are texts of up to {len(example)} characters, and the completion must equal them",
            caution="the answers are long texts, which a completion will hardly ever equal: judge them with a function "
            "of your own (--reward reward.py:reward)",
        )
    return Choice("exact", f"answers are short texts, such as {shown(example)}, and the completion must equal them")


def shown(text: str) -> str:
    """The beginning of a text in quotes, on one line."""
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _has_tests(prompt: Prompt) -> bool:
    try:
        find_tests(prompt)
    except JudgeError:
        return False
    return True


def _game(answers: Sequence[dict[str, Any]]) -> Choice | None:
    if all({"numbers", "target"} <= set(answer) for answer in answers):
        return Choice("countdown", "answers are numbers to combine and a target: the arithmetic is checked exactly")
    if all({"names", "solution"} <= set(answer) for answer in answers):
        return Choice("knights_knaves", "answers say who is a knight and who is a knave: every role counts")
    return None


def _number(texts: Sequence[str]) -> Choice:
    zero = next(filter(_LEADING_ZERO.match, texts), None)
    if zero is not None:
        return Choice("exact", f"answers are strings of digits, such as {shown(zero)}, whose leading 0 counts")
    longest = max(texts, key=lambda text: sum(map(str.isdecimal, text)))
    if sum(map(str.isdecimal, longest)) > NUMERIC_DIGITS:
        return Choice(
            "math",
            f"answers are long numbers, such as {shown(longest)}; `numeric` compares only {NUMERIC_DIGITS} digits",
        )
    return Choice(
        "numeric",
        f"answers are numbers, such as {shown(longest)}; the completion's last number counts. "
        "Stricter: `math`, for answers in \\boxed{}",
    )


def missing_file(spec: str) -> Path | None:
    """The file of ``FILE.py:function`` if it does not exist yet; None for any other verifier.

    Raises InputError for an invalid function name, and for a folder that does not exist.
    """
    where, _, name = spec.rpartition(":")
    path = Path(where).expanduser()
    if path.suffix != ".py" or path.exists():
        return None
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(
            f"--reward: '{name}' is not the name of a function; expected FILE.py:function", docs="verifiers"
        )
    if not path.parent.is_dir():
        raise InputError(f"--reward: there is no folder '{path.parent}' to write {path.name} to; make it first")
    return path


def reward_function(spec: str) -> str:
    """Source code of a working reward function with the name in ``FILE.py:function``."""
    return _REWARD_FUNCTION.format(name=spec.rpartition(":")[2])
