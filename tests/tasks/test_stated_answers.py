"""The answers that completions state."""

from __future__ import annotations

import pytest

from pacedrl.tasks.completions import stated_answer


@pytest.mark.parametrize(
    ("verifier", "text", "answer"),
    [
        ("math", r"so 4, or \boxed{1} no, \boxed{ \frac{1}{2} } it is 9", r"\frac{1}{2}"),
        ("exact", r"\boxed{x} #### 3", "x"),
        ("gym", "reason 1\n#### 42 \n", "42"),
        ("math", "#### 1 and #### -1,234.5", "-1,234.5"),
        ("math", "it is 7 or -12,345.67 dollars.", "-12,345.67"),
        ("numeric", "first 1. then 2.", "2"),
        ("numeric", " no number ", "no number"),
        ("exact", " 12 then 13 ", "12 then 13"),
        ("own.py:reward", "12 then 13\n", "12 then 13"),
        ("math", r"\boxed{unfinished 5", "5"),
        ("math", "", ""),
        ("gym", "<answer>1</answer> <answer> 2 3 </answer> #### 4", "2 3"),
        ("countdown", "<answer>1 + 2", "<answer>1 + 2"),
        ("code", "Here:\n```python\nx = 1\n```\nThat is it.", "x = 1"),
    ],
)
def test_the_answer_stated(verifier: str, text: str, answer: str) -> None:
    assert stated_answer(verifier, text) == answer
