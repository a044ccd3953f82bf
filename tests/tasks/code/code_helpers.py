"""Helpers that judge code in tests."""

from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.verifier import CodeSettings, code_reward
from pacedrl.types import Prompt

DOUBLE = "def double(x):\n    return 2 * x\n"
HEAD = 'import math\n\n\ndef double(x):\n    """Twice x."""\n'

# The real sandbox if the machine has it; the tests here do not depend on it.
SETTINGS = CodeSettings("rlimits" if sandbox._why_not() else "bubblewrap")


def prompt(answer=None, content="Write double(x).", **columns):
    return Prompt("key", "task", content, answer, columns)


def reward(text, answer=None, settings=SETTINGS, **row):
    return code_reward(prompt(answer, **row), text, settings)
