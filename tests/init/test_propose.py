"""The verifier proposed for various answers, which must accept them."""

from __future__ import annotations

from typing import Any

import pytest

from pacedrl.init.verifier import propose
from pacedrl.tasks.verifiers import gold_completion, judge, resolve
from pacedrl.types import Prompt


def prompts(answers: list[Any], **columns: Any) -> list[Prompt]:
    return [Prompt(str(n), "task", "question", answer, columns) for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "verifier", "why"),
    [
        ([3, 14, -5], "numeric", "'14'"),
        (["3.5", "1,234", "$7", "1/2", "50%"], "numeric", "numbers"),
        (["So 2+2=4.\n#### 4", "#### 5"], "numeric", "numbers"),
        (["0123", "4567"], "exact", "'0123'"),
        (["12345678", "3"], "math", "'12345678'"),
        ([r"\frac{1}{2}", "3"], "math", "frac"),
        (["$x+1$", "Friday"], "math", r"\boxed{}"),
        (["x^2", "y"], "math", "x^2"),
        (["A", "B", "C"], "exact", "short texts"),
        (["2020-01-01", "2021-05-06"], "exact", "2020-01-01"),
        (["1, 2, 3", "3, 2, 1"], "exact", "1, 2, 3"),
        (["3", "none"], "exact", "none"),
        ([{"numbers": [1, 2, 3], "target": 6}], "countdown", "target"),
        ([{"names": ["Zoey"], "solution": [True]}], "knights_knaves", "knave"),
    ],
)
def test_the_verifier_follows_from_the_answers(answers: list[Any], verifier: str, why: str) -> None:
    choice = propose(prompts(answers))
    assert choice is not None
    assert (choice.verifier, choice.caution) == (verifier, "")
    assert why in choice.why.replace("\\\\", "\\")
    judge_it = resolve(verifier)
    for prompt in prompts(answers):
        gold = gold_completion(verifier, prompt)
        assert gold is not None
        assert judge(judge_it, prompt, gold).reward == 1.0


def test_missing_answers_are_ignored_unless_all_are_missing() -> None:
    choice = propose(prompts([None, 3]))
    assert choice is not None
    assert choice.verifier == "numeric"
    assert propose(prompts([None, None])) is None
    assert propose(prompts([{"some": "object"}])) is None


def test_tests_take_precedence_over_answers() -> None:
    for columns in ({"test_list": ["assert f(1) == 2"]}, {"tests": '{"inputs": ["1"], "outputs": ["2"]}'}):
        choice = propose(prompts([None, "3"], **columns))
        assert choice is not None
        assert choice.verifier == "code"


def test_long_texts_come_with_a_caution() -> None:
    choice = propose(prompts(["word " * 40, "3"]))
    assert choice is not None
    assert choice.verifier == "exact"
    assert "--reward" in choice.caution
