"""Countdown, 24 and knights and knaves: every solution is accepted, and nothing else."""

import ast
import csv
import itertools
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pacedrl.errors import JudgeError
from pacedrl.tasks.games import countdown_gold, countdown_reward, knights_knaves_gold, knights_knaves_reward

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
PUZZLE = {"numbers": [1, 2, 3, 4], "target": 24}


def rows(name):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return parquet.read_table(path).to_pylist()


@pytest.mark.parametrize(
    "text",
    [
        "<answer>1*2*3*4</answer>",
        "<think>(1+2)*3</think> <answer> (1 + 2 + 3) * 4 = 24 </answer>",
        "<answer>9</answer> no, <answer>4*3*2/1</answer>",
        r"\boxed{4 \times 3 \times 2 \div 1}",
        r"so $\boxed{\left(1+2+3\right) \cdot 4}$",
        "#### 4×3×2÷1",
        "#### 4 * (3 + 1 + 2)",
        "I try.\n4*3*2*1",
        "4*3*2*1 = 24.\n",
        "(((((4)))))*3*2*1",
    ],
)
def test_countdown_accepts(text):
    assert countdown_reward(PUZZLE, text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24",
        "<answer></answer>",
        "<answer>1*2*3*4 = 25</answer>",
        "<answer>24 = 1*2*3*4</answer>",
        "<answer>1*2*3*4 = 24 = 24</answer>",
        "<answer>12+3*4</answer>",  # 12 out of 1 and 2
        "<answer>1*2*3*4*1</answer>",
        "<answer>2*3*4</answer>",
        "<answer>1*2*3*04</answer>",
        "<answer>1*2*3*4.0</answer>",
        "<answer>1*2*3*4e0</answer>",
        "<answer>+1*2*3*4</answer>",
        "<answer>-1*-2*3*4</answer>",
        "<answer>2*3*4**1</answer>",
        "<answer>4**2+3*2-1</answer>",
        "<answer>24//1*2*3*4</answer>",
        "<answer>1*2*3*4 or</answer>",
        "<answer>1*2*3*4 # 5</answer>",
        "<answer>1*2*3\n*4</answer>",
        "<answer>1*2*3*4, 5</answer>",
        "<answer>(1*2)(3*4)</answer>",
        "<answer>1_0</answer>",
        "<answer>1*2*3*4/(1-1)</answer>",
        "<answer>4*3*2/(1-1)</answer>",
        "<answer>١*٢*٣*٤</answer>",
        "<answer>１*２*３*４</answer>",
        "<answer>__import__('os').system('true')</answer>",
        "<answer>(lambda: 24)()</answer>",
        "<answer>1*2*3*4</answer> <answer>5</answer>",
        "1*2*3*4\nI think",
        "1*2*3*4 \x00",
        "<answer>1*2*3*4\ud800</answer>",
    ],
)
def test_countdown_rejects(text):
    assert countdown_reward(PUZZLE, text) == 0.0


def test_countdown_uses_every_number_once():
    for text, reward in [("2*3*4", 0.0), ("1*2*3*4", 1.0), ("4*3*2*2/2", 0.0), ("4!", 0.0)]:
        assert countdown_reward(PUZZLE, text) == reward


def test_four_numbers_in_a_string_are_the_game_of_24():
    assert countdown_reward("1 1 4 6", "<answer>(1 + 1) * (4 + 6) + 4</answer>") == 0.0
    assert countdown_reward("1 2 3 4", "<answer>1 * 2 * 3 * 4</answer>") == 1.0
    assert countdown_reward("3 3 8 8", "8 / (3 - 8 / 3) = 24") == 1.0
    with pytest.raises(JudgeError, match="nor four numbers for 24"):
        countdown_reward("1 2 3", "1 + 2")


@given(st.lists(st.integers(1, 13), min_size=2, max_size=4), st.data())
def test_what_can_be_made_is_found_and_accepted(numbers, data):
    value = Fraction(numbers[0])
    for number in numbers[1:]:
        sign = data.draw(st.sampled_from("+-*/"))
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value / number}[sign]
    assume(value.denominator == 1 and value > 0)
    puzzle = {"numbers": data.draw(st.permutations(numbers)), "target": int(value)}
    solution = countdown_gold(puzzle)
    assert countdown_reward(puzzle, solution) == 1.0
    assert countdown_reward({**puzzle, "target": puzzle["target"] + 1}, solution) == 0.0
    assert countdown_reward({**puzzle, "numbers": [*puzzle["numbers"], 1]}, solution) == 0.0


def test_puzzles_without_a_solution_say_so_and_long_ones_are_not_tried():
    assert countdown_reward("3 3 8 8", countdown_gold("3 3 8 8")) == 1.0
    with pytest.raises(JudgeError, match="nothing makes 24 out of 1, 1, 1, 1"):
        countdown_gold("1 1 1 1")
    with pytest.raises(JudgeError, match="nothing makes 7 out of 5, 5"):
        countdown_gold({"numbers": [5, 5], "target": 7})
    assert countdown_gold({"numbers": [1, 2, 3, 4, 5], "target": 15}) is None


def test_countdown_is_exact():
    assert countdown_reward({"numbers": [9, 5], "target": 4}, "9 − 5") == 1.0
    assert countdown_reward({"numbers": [3, 3, 8, 8], "target": 24}, "8/(3-8/3)") == 1.0
    assert countdown_reward({"numbers": [1, 3, 3], "target": 1}, "1/3*3") == 1.0
    assert countdown_reward({"numbers": [10**9, 1, 3], "target": 333333333}, "1000000000*1/3") == 0.0


HOSTILE = [
    "(" * 100_000 + "1" + ")" * 100_000,
    "(" * 100 + "1" + ")" * 100,
    "-" * 100_000 + "1",
    "1+" * 100_000 + "1",
    "1+" * 140 + "1",
    "9" * 1_000_000,
    "9" * 200,
    "*".join(["9999999999"] * 25),
    "<answer>" * 100_000,
    "<answer>" + "1*" * 500_000 + "</answer>",
    r"\boxed{" * 100_000,
    "####" * 100_000,
    "\n" * 1_000_000,
    "\\" * 1_000_000,
    "(1) Zoey is a knight\n" * 100_000,
    "<answer>" + "(1) Zoey is a knight\n" * 150 + "</answer>",
    "<answer>" + "a " * 1900 + "</answer>",
    "<answer>" + "is a " * 790 + "</answer>",
    "<answer>" + "(" * 3900 + "</answer>",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))  # not the texts: they are long
def test_hostile_answers_cost_little(text):
    start = time.process_time()
    assert countdown_reward(PUZZLE, text) == 0.0
    assert knights_knaves_reward({"names": ["Zoey", "Ann"], "solution": [True, True]}, text) == 0.0
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "24",
        {"numbers": [1]},
        {"numbers": [], "target": 1},
        {"numbers": [1.5], "target": 1},
        {"numbers": [True], "target": 1},
        {"numbers": [-1], "target": 1},
        {"numbers": [1] * 13, "target": 1},
        {"numbers": [1], "target": "1"},
        {"numbers": "11", "target": 2},
    ],
)
def test_countdown_needs_a_puzzle(answer):
    with pytest.raises(JudgeError, match="the gold answer"):
        countdown_reward(answer, "1")


@st.composite
def expressions(draw, depth=0):
    if depth == 3 or draw(st.booleans()):
        return str(draw(st.integers(0, 30)))
    left, right = draw(expressions(depth + 1)), draw(expressions(depth + 1))
    return f"({left} {draw(st.sampled_from('+-*/'))} {right})"


def numbers_and_value(expression):
    """By Python's own arithmetic on fractions."""
    numbers = [node.value for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Constant)]
    tokens = expression.replace("(", " ( ").replace(")", " ) ").split()
    exact = " ".join(f"Fraction({token})" if token.isdigit() else token for token in tokens)
    try:
        return numbers, eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        return numbers, None


@given(expressions(), st.integers(-3, 3), st.lists(st.integers(0, 30), max_size=1))
def test_countdown_agrees_with_python(expression, off, extra):
    numbers, value = numbers_and_value(expression)
    whole = value is not None and value.denominator == 1
    target = int(value) + off if whole else off
    puzzle = {"numbers": [*numbers, *extra], "target": target}
    expected = whole and off == 0 and not extra
    assert countdown_reward(puzzle, f"<answer>{expression}</answer>") == float(expected)


@given(st.text(alphabet="0123456789+-*/() .=×÷\\\n<>answer", max_size=60))
def test_any_countdown_text_gets_a_reward(text):
    assert countdown_reward(PUZZLE, text) in (0.0, 1.0)


def check_countdown(name, step):
    for row in rows(name)[::step]:
        gold = row["reward_model"]["ground_truth"]
        assert countdown_reward(gold, row["answer"]) == 1.0
        assert countdown_reward({**gold, "target": gold["target"] + 1}, row["answer"]) == 0.0
        assert countdown_reward({**gold, "numbers": gold["numbers"][1:]}, row["answer"]) == 0.0


def test_countdown_gold_answers():
    check_countdown("countdown/uft_test.parquet", 1)


@pytest.mark.slow
def test_all_countdown_gold_answers():
    check_countdown("countdown/uft_train.parquet", 1)


def check_24(step):
    path = DATA / "game24" / "24.csv"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with path.open(encoding="utf-8") as file:
        puzzles = [[int(n) for n in row["Puzzles"].split()] for row in csv.DictReader(file)]
    assert len(puzzles) == 1362
    for numbers in puzzles[::step]:
        puzzle = {"numbers": numbers, "target": 24}
        assert countdown_reward(puzzle, countdown_gold(puzzle).replace("</", " = 24</")) == 1.0


def test_solutions_of_24():
    check_24(40)


@pytest.mark.slow
def test_all_solutions_of_24():
    check_24(1)


ROLES = {"names": ["Zoey", "Mason", "Ann"], "solution": [True, False, True]}
RIGHT = "(1) Zoey is a knight\n(2) Mason is a knave\n(3) Ann is a knight"


@pytest.mark.parametrize(
    "text",
    [
        f"<answer>{RIGHT}</answer>",
        f"<answer>(1) Zoey is a knave</answer> wait <answer>\n{RIGHT}\n</answer>",
        "<answer>Ann is a knight, Zoey is a knight, and Mason is a knave.</answer>",
        "<answer>1. Zoey is a Knight\n2. Mason is a Knave\n3. Ann is a Knight\n</answer>",
        "<answer>**Zoey**: knight; **Mason**: knave; **Ann**: knight</answer>",
        r"\boxed{Zoey is a knight, Mason is a knave, Ann is a knight}",
        "#### Zoey is a knight and Mason is a knave and Ann is a knight",
    ],
)
def test_knights_and_knaves_accepts(text):
    assert knights_knaves_reward(ROLES, text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        RIGHT,  # not marked as the answer: the reasoning says such things too
        "<answer></answer>",
        f"<answer>{RIGHT}\n(4) Zoey is a knave</answer>",
        f"<answer>{RIGHT}\n(4) Zoey is a knight</answer>",
        f"<answer>{RIGHT}\n(4) Bob is a knight</answer>",
        f"<answer>{RIGHT}\nOr the other way round</answer>",
        "<answer>Zoey is a knight, Mason is a knave</answer>",
        "<answer>Zoey is a knight, Mason is a knight, Ann is a knight</answer>",
        "<answer>Zoey is a knight or a knave, Mason is a knave, Ann is a knight</answer>",
        "<answer>Zoey is a knight/knave, Mason is a knave, Ann is a knight</answer>",
        "<answer>Zoey is not a knave, Mason is a knave, Ann is a knight</answer>",
        "<answer>Zoey is a knight, Mason is a knave, Ann is a knightknave</answer>",
        "<answer>It is false that Zoey is a knight, Mason is a knave, Ann is a knight</answer>",
        "<answer>Zoey, Ann: knight; Mason: knave</answer>",
        f"<answer>{RIGHT}",
        f"<answer>{RIGHT}</answer><answer>(1) Zoey is a knave</answer>",
    ],
)
def test_knights_and_knaves_rejects(text):
    assert knights_knaves_reward(ROLES, text) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {"names": ["A"]},
        {"names": [], "solution": []},
        {"names": ["A"], "solution": [True, False]},
        {"names": ["A", "a"], "solution": [True, False]},
        {"names": ["A"], "solution": ["knight"]},
        {"names": [1], "solution": [True]},
    ],
)
def test_knights_and_knaves_needs_roles(answer):
    with pytest.raises(JudgeError, match="the gold answer"):
        knights_knaves_reward(answer, RIGHT)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["Ann", "Bob", "Cy", "Di", "Eve"]), min_size=1, unique=True), st.data())
def test_only_the_right_roles_win(names, data):
    solution = data.draw(st.lists(st.booleans(), min_size=len(names), max_size=len(names)))
    for guess in itertools.product([True, False], repeat=len(names)):
        statements = [f"{n} is a {'knight' if role else 'knave'}" for n, role in zip(names, guess, strict=True)]
        text = f"<answer>{', '.join(data.draw(st.permutations(statements)))}</answer>"
        expected = float(list(guess) == solution)
        assert knights_knaves_reward({"names": names, "solution": solution}, text) == expected


def check_knights_and_knaves(name, count):
    table = rows(name)
    assert len(table) == count
    for row in table:
        gold = row["reward_model"]["ground_truth"]
        assert knights_knaves_reward(gold, row["answer"]) == 1.0
        assert knights_knaves_gold(gold) == f"<answer>{gold['solution_text_format']}</answer>"
        assert knights_knaves_reward(gold, f"<answer>{gold['solution_text_format']}</answer>") == 1.0
        wrong = {**gold, "solution": [not gold["solution"][0], *gold["solution"][1:]]}
        assert knights_knaves_reward(wrong, row["answer"]) == 0.0


def test_knights_and_knaves_gold_answers():
    check_knights_and_knaves("knights_knaves/test.parquet", 500)


@pytest.mark.slow
def test_all_knights_and_knaves_gold_answers():
    check_knights_and_knaves("knights_knaves/train.parquet", 4500)
