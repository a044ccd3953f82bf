"""Tests of which part of a completion is its code."""

import pytest
from code_helpers import reward

from pacedrl.tasks.code.blocks import extract


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1", "x = 1"),
        ("Try\n```python\na\n```\nor\n```py\nb\n```\nso\n```\nc\n```\n", "b\n"),
        ("```\na\n```\n```text\nb\n```", "b\n"),
        ("```python\na\nb", "a\nb"),
        ("    return 1\n```\nThat is all.", "    return 1\n"),
        ("  ```Python3\n  a\n  ```", "a\n"),
        ('```python title="a.py"\na\n```\n```text\nb\n```', "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````py\na\n```\nb\n````", "a\n```\nb\n"),
        ("~~~~python\na\n~~~\n```\n~~~~~", "a\n~~~\n```\n"),
        ("1. So:\n   ```python\n   a\n     b\n\n   c\n   ```\nd", "a\n  b\n\nc\n"),
        ("- ```python\n  a\n  ```", "a\n"),
        ('```python\n"""\n    ```\n    a\n    ```\n"""\n```', '"""\n    ```\n    a\n    ```\n"""\n'),
        ("```python\na\n```python\nb\n```", "a\n```python\nb\n"),
        ("```python\r\na\r\n```\r\nb", "a\r\n"),
        ("```python\na = '\u2028  '\n```", "a = '\u2028  '\n"),
        ("Use ```x``` here.\n```x```\n```python\na\n```", "a\n"),
        ("```python\na```", "a"),
        ("<answer>\n```python\na\n```\n</answer>", "a\n"),
        ("```python\na\n```\n~~~\nb", "a\n"),
        ("```python\n```", ""),
        ("", ""),
    ],
)
def test_extract(text, expected):
    assert extract(text) == expected


def test_extract_takes_no_longer_than_the_text():
    assert extract("`" * 1_000_000) == ""
    assert extract("```python\n" * 100_000).count("\n") == 99_999


USAGE = "```python\ndef twice(x):\n    return {}\n```\nFor example:\n```python\nresult = twice(3)\nprint(result)\n```"


@pytest.mark.parametrize(
    "row",
    [
        {"test_list": ["result = twice(2)\nassert result == 4"]},
        {"test": "def check(candidate):\n    assert candidate(2) == 4", "entry_point": "twice"},
        {"answer": {"fn_name": "twice", "inputs": [[2]], "outputs": [4]}},
        {
            "base_input": [[2]],
            "canonical_solution": "    return x + x",
            "entry_point": "twice",
            "prompt": "def twice(x):\n",
        },
    ],
)
def test_a_usage_example_after_the_solution_is_not_the_solution(row):
    assert reward(USAGE.format("2 * x"), **row) == 1.0
    assert reward(USAGE.format("3 * x"), **row) == 0.0
    corrected = USAGE.format("3 * x") + "\nCorrected:\n```python\ntwice = lambda x: 2 * x\n```"
    assert reward(corrected, **row) == 1.0


def test_the_last_program_counts():
    row = {"inputs": ["2"], "outputs": ["4"]}
    assert reward("```python\nprint(4)\n```\n```python\nprint(5)\n```", row) == 0.0
    assert reward("```python\nprint(5)\n```\n```python\nprint(4)\n```", row) == 1.0


def test_the_block_that_defines_a_class():
    row = {"inputs": [[["Box", "get"], [[], []]]], "outputs": [[None, 4]]}
    text = "```python\nclass Box:\n    def get(self): return 4\n```\nUse it:\n```python\nbox = Box()\n```"
    assert reward(text, row) == 1.0
    assert reward(text.replace("4", "5"), row) == 0.0
