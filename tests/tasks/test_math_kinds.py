"""Kinds of mathematical answers: each instance judged directly, each kind through the verifier processes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_kinds import KINDS, completion, pairs

from pacedrl.errors import JudgeError
from pacedrl.tasks.math.rewards import math_gold, math_reward, numeric_reward
from pacedrl.tasks.pool import Job, VerifierPool
from pacedrl.types import Prompt

STATEMENTS = (
    r"so \boxed{%s}.",
    "Answer: %s",
    "**Answer:** $%s$",
    "The answer is $%s$.",
    "the correct answer is %s",
    "<answer>%s</answer>",
    "#### %s",
    r"\boxed{%s} and \boxed{}",
)


@pytest.mark.parametrize(("kind", "gold", "text", "right"), pairs())
def test_each_instance(kind, gold, text, right):
    assert math_reward(gold, text) == float(right)


def test_every_kind_through_the_verifier_processes():
    chosen = [
        (case.gold, completion(texts[0]), right)
        for cases in KINDS.values()
        for case in cases
        for right, texts in ((1.0, case.right), (0.0, case.wrong))
        if texts
    ]
    with VerifierPool(workers=1, timeout_s=10.0) as pool:
        verdicts = pool.score([Job("math", Prompt("key", "task", "q", gold), text) for gold, text, _ in chosen])
    assert [(verdict.reward, verdict.error) for verdict in verdicts] == [(right, None) for _, _, right in chosen]


def stated(value):
    return [statement % value for statement in STATEMENTS]


@given(st.integers(-(10**9), 10**9))
def test_a_whole_number_is_itself_in_every_statement_and_no_other(value):
    for text in stated(f"{value:,}") + stated(value):
        assert math_reward(str(value), text) == 1.0
        assert numeric_reward(value, text) == 1.0
        assert math_reward(str(value + 1), text) == 0.0
        assert numeric_reward(-value - 1, text) == 0.0


@given(st.decimals(-(10**6), 10**6, places=3), st.integers(0, 9), st.integers(1, 9))
def test_a_number_with_one_digit_changed_is_refused(value, place, by):
    gold = f"{value:f}"
    digits = [index for index, character in enumerate(gold) if character.isdigit()]
    index = digits[place % len(digits)]
    changed = f"{gold[:index]}{(int(gold[index]) + by) % 10}{gold[index + 1 :]}"
    for text in stated(gold):
        assert math_reward(gold, text) == 1.0
        assert math_reward(changed, text) == float(float(changed) == float(gold) == 0)


@settings(deadline=None)
@given(
    st.integers(2, 999),
    st.integers(1, 500),
    st.sampled_from([r"\sqrt{%d}", r"%d\pi", "%dx", "x^{%d}", r"\frac{%d}{x}"]),
)
def test_an_expression_is_itself_in_every_statement_and_no_other(number, by, form):
    for text in stated(form % number):
        assert math_reward(form % number, text) == 1.0
    assert math_reward(form % (number + by), rf"\boxed{{{form % number}}}") == 0.0


@given(st.lists(st.integers(-99, 999), min_size=2, max_size=4, unique=True), st.booleans())
def test_lists_have_no_order_and_tuples_do(numbers, brackets):
    shown, turned = (", ".join(map(str, each)) for each in (numbers, [*numbers[1:], numbers[0]]))
    if brackets:
        assert math_reward(f"({shown})", rf"\boxed{{({turned})}}") == 0.0
    else:
        assert math_reward(shown, rf"\boxed{{{turned}}}") == 1.0
    assert math_reward(shown, rf"\boxed{{{', '.join(map(str, numbers[1:]))}}}") == 0.0


@settings(deadline=None)
@given(st.integers(2, 400), st.integers(2, 400))
def test_functions_that_agree_near_zero_only_are_told_apart(near, far):
    same = near == far
    assert math_reward(f"|x-{near}|", rf"\boxed{{|x-{far}|}}") == float(same)
    assert math_reward(f"|x-{near}|", rf"\boxed{{{near}-x}}") == 0.0
    assert math_reward(rf"\lfloor n/{near} \rfloor", rf"\boxed{{\lfloor n/{far} \rfloor}}") == float(same)


def test_a_gold_answer_of_several_boxes_is_all_of_them():
    assert math_gold(r"We get \boxed{2} or \boxed{3}, so \boxed{2}.") == "2, 3"
    with pytest.raises(JudgeError, match="is not one the verifier 'math' can parse"):
        math_reward(r"\boxed{} and \boxed{ }", "5")


def test_roots_are_worked_out():
    assert math_reward(f"{math.sqrt(2):.8f}", r"\boxed{\sqrt{2}}") == 0.0
    assert math_reward(r"\sqrt{2}", rf"\boxed{{{math.sqrt(2):.8f}}}") == 1.0
