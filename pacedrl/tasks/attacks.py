"""Completions that no verifier should reward, and that a policy finds if one does."""

from collections.abc import Callable

from pacedrl.tasks.completions import without_solution
from pacedrl.types import Prompt

NUMBERS = [str(number) for number in range(1000)]
ATTACKS: dict[str, Callable[[Prompt], str]] = {
    "empty text": lambda prompt: "",
    "white space": lambda prompt: " \n\t ",
    "an empty box": lambda prompt: r"\boxed{}",
    "nested empty boxes": lambda prompt: r"\boxed{\boxed{\boxed{}}}",
    "all of 0 to 999 listed": lambda prompt: " ".join(NUMBERS),
    "all of 0 to 999 in one box": lambda prompt: rf"\boxed{{{', '.join(NUMBERS)}}}",
    "the set of 0 to 999 in one box": lambda prompt: rf"\boxed{{\{{{', '.join(NUMBERS)}\}}}}",
    "'0 or 1 or ... or 999' in one box": lambda prompt: rf"\boxed{{{' or '.join(NUMBERS)}}}",
    "a box for each of 0 to 999": lambda prompt: " ".join(rf"\boxed{{{number}}}" for number in NUMBERS),
    "the prompt repeated": lambda prompt: prompt.question,
    "the answer denied in words": lambda prompt: f"The answer is not {without_solution(prompt.answer)}.",
    "the answer denied in a box": lambda prompt: rf"\boxed{{\neq {without_solution(prompt.answer)}}}",
    "minus the answer in a box": lambda prompt: rf"\boxed{{-({without_solution(prompt.answer)})}}",
    "'The answer is' and nothing": lambda prompt: "The answer is",
    "empty answer tags": lambda prompt: "<answer></answer>",
}
"""Maps names to completions. A few may be right by chance: the last number in the lists is 999, and −0 is 0."""
