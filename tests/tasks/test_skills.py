import random
from collections import Counter
from itertools import pairwise

import pytest

from pacedrl.errors import InputError
from pacedrl.tasks.skills import MAX_DIGITS, MAX_ROWS, MIN_DIGITS, SKILLS, SPLITS, draw_row, skill_rows, split_of


def _is_right(skill: str, operands: str, answer: str) -> bool:
    """Judges an answer by its defining property, not by computing it the way the module does."""
    digits, result = [[int(c) for c in part] for part in operands.split("+")], [int(c) for c in answer]
    first, n = digits[0], len(digits[0])
    checks = {
        "copy": lambda: all(first[i] == result[i] for i in range(n)),
        "reverse": lambda: all(first[i] == result[n - 1 - i] for i in range(n)),
        "sort": lambda: Counter(first) == Counter(result) and all(a <= b for a, b in pairwise(result)),
        "negate": lambda: all(a + b == 9 for a, b in zip(first, result, strict=True)),
        "add": lambda: all((c - a - b) % 10 == 0 for a, b, c in zip(*digits, result, strict=True)),
        "rotate": lambda: result[-1] == first[0] and result[:-1] == first[1:],
        "double": lambda: all((b - a - a) % 10 == 0 for a, b in zip(first, result, strict=True)),
    }
    return len(result) == n and checks[skill]()


@pytest.mark.parametrize("skill", SKILLS)
def test_every_answer_is_right(skill: str) -> None:
    for row in skill_rows(skills=[skill], size=500):
        name, operands = row["prompt"].removesuffix("=").split(":")
        assert row.keys() == {"prompt", "answer", "skill"}
        assert name == row["skill"] == skill
        assert _is_right(skill, operands, row["answer"]), row


@pytest.mark.parametrize(
    ("skill", "operands", "answer"),
    [
        ("copy", "3017", "3017"),
        ("reverse", "3017", "7103"),
        ("sort", "30170", "00137"),
        ("negate", "3017", "6982"),
        ("add", "3817+2407", "5214"),
        ("rotate", "3017", "0173"),
        ("double", "3817", "6624"),
    ],
)
def test_worked_examples(skill: str, operands: str, answer: str) -> None:
    assert SKILLS[skill](operands) == answer


def test_the_format_is_as_documented() -> None:
    row = draw_row("train", "add", random.Random(0))
    left, right = row["prompt"].removeprefix("add:").removesuffix("=").split("+")
    assert left.isdigit()
    assert right.isdigit()
    assert len(left) == len(right) == len(row["answer"])


def test_skills_take_turns_and_lengths_cover_the_range() -> None:
    rows = skill_rows(size=700)
    assert [row["skill"] for row in rows[: len(SKILLS)]] == list(SKILLS)
    assert set(Counter(row["skill"] for row in rows).values()) == {700 // len(SKILLS)}
    assert {len(row["answer"]) for row in rows} == set(range(MIN_DIGITS, MAX_DIGITS + 1))


def test_splits_share_no_prompt_whatever_the_seeds() -> None:
    train = {row["prompt"] for seed in range(3) for row in skill_rows("train", size=3000, seed=seed)}
    test = {row["prompt"] for seed in range(3) for row in skill_rows("test", size=3000, seed=seed)}
    assert train
    assert test
    assert not train & test
    assert {split_of(prompt) for prompt in train} == {"train"}
    assert {split_of(prompt) for prompt in test} == {"test"}


@pytest.mark.parametrize("split", SPLITS)
def test_same_arguments_same_rows_and_no_prompt_twice(split: str) -> None:
    rows = skill_rows(split, size=2000, seed=7)
    assert rows == skill_rows(split, size=2000, seed=7)
    assert rows[:100] == skill_rows(split, size=100, seed=7)
    assert rows != skill_rows(split, size=2000, seed=8)
    assert len({row["prompt"] for row in rows}) == len(rows) == 2000


def test_rows_never_change() -> None:
    # Pinned: results are only comparable between versions while these prompts stay what they are.
    assert [row["prompt"] for row in skill_rows("test", size=3)] == PINNED


PINNED = ["copy:14=", "reverse:26712=", "sort:06628="]


def test_the_largest_request_of_one_skill_ends() -> None:
    assert len(skill_rows(skills=["copy"], size=MAX_ROWS)) == MAX_ROWS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "skills: unknown split 'dev': known splits are train, test"),
        ({"skills": ["copy", "fly"]}, f"skills: unknown skill 'fly': known skills are {', '.join(SKILLS)}"),
        ({"skills": []}, f"skills: expected a list of names out of {', '.join(SKILLS)}, got []"),
        ({"skills": "copy"}, f"skills: expected a list of names out of {', '.join(SKILLS)}, got 'copy'"),
        ({"skills": [["copy"]]}, f"skills: unknown skill '['copy']': known skills are {', '.join(SKILLS)}"),
        ({"size": 0}, "skills: size must be a whole number from 1 to 100000, got 0"),
        ({"size": 100_001}, "skills: size must be a whole number from 1 to 100000, got 100001"),
        ({"size": "9"}, "skills: size must be a whole number from 1 to 100000, got '9'"),
        ({"seed": 0.5}, "skills: seed must be a whole number, got 0.5"),
        ({"sizes": 3}, "skills: unknown option 'sizes': known options are skills, size, seed"),
    ],
)
def test_bad_input_is_one_line_with_the_known_names(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        skill_rows(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message
