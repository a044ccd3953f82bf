"""Thoughts before the answer: built-in verifiers do not read them, a user's function does."""

import pytest

from pacedrl.tasks.completions import after_thoughts
from pacedrl.tasks.verifiers import judge, resolve
from pacedrl.types import Prompt


def row_of(answer, **columns):
    return Prompt("key", "task", "How many?", answer, columns)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("18", "18"),
        ("<think>19</think>18", "18"),
        ("19</think>18", "18"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>18", ""),
        ("<think>18</think>", ""),
        ("", ""),
    ],
)
def test_what_follows_the_thoughts(text, answer):
    assert after_thoughts(text) == answer


@pytest.mark.parametrize("spec", ["math", "numeric", "exact", "countdown", "knights_knaves", "gym"])
def test_built_in_verifiers_judge_what_follows_the_thoughts(spec):
    row = row_of("18")
    right, wrong = "18", "19"
    if spec == "countdown":
        row, right, wrong = row_of({"numbers": [2, 9], "target": 18}), "2*9", "2+9"
    if spec == "knights_knaves":
        row = row_of({"names": ["Ann"], "solution": [True]})
        right, wrong = "<answer>Ann is a knight</answer>", "<answer>Ann is a knave</answer>"
    if spec == "gym":
        row = row_of("18", metadata={"source_dataset": "basic_arithmetic"})
    verdicts = {
        text: judge(resolve(spec), row, text).reward
        for text in (
            f"<think>{wrong}</think>{right}",
            f"{wrong}</think>{right}",  # the prompt began the thoughts
            f"<think>{right}</think>{wrong}",
            f"<think>{right}</think>",
            f"<think>{right}",
        )
    }
    assert list(verdicts.values()) == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.0], abs=0.1), verdicts


def test_a_function_of_the_user_reads_the_thoughts(tmp_path):
    (tmp_path / "same.py").write_text(
        "def same(completions, answer):\n    return [float(completions[0] == answer[0])]\n"
    )
    verifier = resolve(f"{tmp_path}/same.py:same")
    assert judge(verifier, row_of("<think>1</think>18"), "<think>1</think>18").reward == 1.0
    assert judge(verifier, row_of("18"), "<think>1</think>18").reward == 0.0
