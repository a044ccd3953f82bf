"""The math and numeric judges, value by value."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.errors import JudgeError
from pacedrl.tasks.completions import last_boxed
from pacedrl.tasks.math.rewards import math_gold, math_reward, numeric_reward

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("18", r"so \boxed{18}"),
        (18, r"\boxed{18}"),
        (18.0, r"\boxed{18}"),
        ("18", r"first \boxed{7}, no: \boxed{18}"),
        ("18", r"\boxed{18.00}"),
        ("1,000", r"\boxed{1000}"),
        (r"\frac{1}{2}", r"\boxed{0.5}"),
        (r"\frac{1}{2}", r"\boxed{\dfrac{2}{4}}"),
        (r"$12$", r"\boxed{12}"),
        (r"Therefore \boxed{\frac{3}{7}}.", r"\boxed{3/7}"),
        ("She has 9 + 9 = 18 left.\n#### 18", r"\boxed{18}"),
        ("text\n#### 1,234", "work\n#### 1234"),
        ("18", "The answer is 18."),
        ("18", "the answer is: $18$ dollars. Now 5 people ask again"),
        (r"\sqrt{2}", r"The answer is \sqrt{2}."),
        (r"(3, \frac{\pi}{2})", r"#### (3, \frac{\pi}{2})"),
        ("18", " 18\n"),
        ("1,234", "1234"),
        (r"\text{east}", r"\boxed{\text{east}}"),
        (r"\{1,2\}", r"\boxed{\{2,1\}}"),
    ],
)
def test_math_accepts(answer, text):
    assert math_reward(answer, text) == 1.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("18", r"\boxed{19}"),
        ("18", ""),
        ("18", "no idea"),
        ("18", "I think we end with 18"),  # states no answer
        ("18", r"18 it is, or rather \boxed{20}"),
        ("18", r"\boxed{\frac{}{}}"),
        ("18", r"\boxed{"),
        ("18", "\x00\ud800 \\boxed{\ud800}"),
        ("18", "1" * 12_000),  # more digits than Python converts: math-verify raises
        ("18", "18 apples, but the answer is 3."),
        ("72", "#### 7\n72"),
    ],
)
def test_math_rejects_and_an_unparsable_completion_is_merely_wrong(answer, text):
    assert math_reward(answer, text) == 0.0


@pytest.mark.parametrize("text", ["C", "**C**", "(C)", "C.", "The best option is C."])
def test_a_letter_alone_is_an_answer(text):
    assert math_reward("C", text) == 1.0
    assert math_reward("D", text) == 0.0


@pytest.mark.parametrize(
    "answer",
    ["", "   ", "#### ", r"\text{}", "$$", "?", "\\", r"\quad", "...", r"\frac{2kn}{n+k-1}-2\frac{k!n!}{(k+n-1)!"],
)
def test_math_cannot_judge_against_a_gold_answer_that_does_not_parse(answer):
    with pytest.raises(JudgeError, match=r"gold answer .* 'math' can parse"):
        math_reward(answer, r"\boxed{18}")


@pytest.mark.parametrize("answer", [{"numbers": [1, 2], "target": 3}, ["18"], None, True])
def test_gold_answers_of_other_types_are_named(answer):
    for reward in (math_reward, numeric_reward):
        with pytest.raises(JudgeError, match="neither text nor a number"):
            reward(answer, "18")


def test_a_long_gold_answer_is_cut_in_the_message():
    with pytest.raises(JudgeError) as error:
        math_reward("{" * 10_000, "18")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("answer", "text", "reward"),
    [
        (18, "18", 1.0),
        ("18", "It costs $18.", 1.0),
        ("#### 1,234", "1234", 1.0),
        ("1234.5", "about 1,234.5 in all", 1.0),
        (0.75, "3/4", 1.0),
        ("3/4", "0.75", 1.0),
        ("50%", "50%", 1.0),
        ("50%", "50", 1.0),
        ("50%", "0.5", 1.0),
        (50, "50%", 0.0),
        (5, "5%", 0.0),
        (5, r"\boxed{5\%}", 0.0),
        (5, "not 5", 0.0),
        (5, r"\boxed{5i}", 0.0),
        (5, r"\boxed{\sqrt5}", 0.0),
        (5, r"\boxed{\sqrt{5}}", 0.0),
        (5, r"\boxed{2-5}", 0.0),
        (5, r"\boxed{x-5}", 0.0),
        (5, r"\boxed{-(5)}", 0.0),
        (5, r"\boxed{-{5}}", 0.0),
        (5, r"-$\boxed{5}$", 0.0),
        (-5, r"\boxed{-5}", 1.0),
        (5, r"\boxed{5x}", 0.0),
        (5, r"\boxed{5 + x}", 0.0),
        (5, r"\boxed{\log 5}", 0.0),
        (5, r"\boxed{2+3 = 5}", 1.0),
        (5, r"\boxed{5 \text{ apples}}", 1.0),
        (-5, r"\boxed{x = -5}", 1.0),
        (-5, "it is -5", 1.0),
        (-5, "it is −5", 1.0),
        (-5, "-$5", 1.0),
        (2, "7-5 leaves 5-2", 1.0),  # the last number is 2, not -2
        (2, "(3)-2", 1.0),
        (1.5e3, "1.5e3", 1.0),
        (0.5, ".5", 1.0),
        (0, "0", 1.0),
        (3, "1,2,3", 1.0),
        (1_000_000, "1000000.5", 0.0),  # whole numbers are exact
        (1_000_000.5, "1000000.6", 1.0),  # within 1e-6
        (200, "100, 200", 1.0),
        (100_200, "100, 200", 0.0),
        (1200, r"1,200 \text{ square feet}", 1.0),
        (34, "Answer: 34\n\nI checked it 2 times.", 1.0),
        (34, "<answer>34</answer> for 17 and 17", 1.0),
        (34, r"\boxed{34}, as 17 + 17", 1.0),
        (34, r"\boxed{} is 34", 1.0),
        (34, "Answer: 35\n\nor is it 34", 0.0),
        (0.5, r"\frac{1}{2}", 1.0),
        (2, r"\frac{1}{2}", 0.0),
        (3, "**3**", 1.0),
        (3, "2**3", 0.0),
        (3, "10^{3}", 0.0),
        (12345678, "12345679.0", 0.0),
        (5, "5 million", 0.0),
        (3, "3 halves", 0.0),
        (1_000_000, "1000002", 0.0),
        (18, "18, then 19", 0.0),
        (18, "none", 0.0),
        (18, "", 0.0),
        (18, "18/0", 0.0),
        (18, "1e999", 0.0),
        (18, "9" * 500, 0.0),
    ],
)
def test_numeric(answer, text, reward):
    assert numeric_reward(answer, text) == reward


def test_numeric_needs_a_number_in_the_gold_answer():
    with pytest.raises(JudgeError, match="'none' holds no number"):
        numeric_reward("none", "18")


@given(st.integers(-(10**12), 10**12))
def test_numeric_reads_what_python_writes(value):
    assert numeric_reward(value, f"so {value:,}.") == 1.0
    assert numeric_reward(f"#### {value:,}", f"{value} ") == 1.0
    assert numeric_reward(value, f"{value + max(1, abs(value) // 1000)}") == 0.0


@given(st.text())
def test_any_text_gets_a_reward(text):
    assert numeric_reward("18", text) in (0.0, 1.0)
    assert math_reward("18", text) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{a} \boxed{b}", "b"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a\}b}", r"a\}b"),
        (r"\boxed{a} \boxed{b", "a"),
        (r"\boxed{a \boxed{b}}", r"a \boxed{b}"),
        (r"\boxed{a \boxed{b}", "b"),
        (r"\boxed {a}", "a"),
        (r"\fbox{a}", "a"),
        (r"\\boxed{a}", "a"),
        (r"\{\boxed{a}", "a"),
        (r"\boxed{}", ""),
        ("boxed{a}", None),
        (r"\boxed{", None),
    ],
)
def test_last_boxed(text, content):
    assert last_boxed(text) == content


def test_every_gsm8k_gold_answer_is_accepted_and_the_next_one_is_not():
    path = DATA / "gsm8k" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 1319
    for answer, other in zip(answers, answers[1:] + answers[:1], strict=True):
        boxed = rf"\boxed{{{math_gold(answer)}}}"
        assert math_reward(answer, boxed) == math_reward(answer, answer) == numeric_reward(answer, answer) == 1.0
        differ = float(math_gold(answer).replace(",", "")) != float(math_gold(other).replace(",", ""))
        assert math_reward(answer, other) == numeric_reward(answer, other) == (0.0 if differ else 1.0)
