"""Rewards of countdown (and the game of 24) and of knights and knaves, with gold answers as in verl's data sets.

The answer is the tagged answer of the completion. Without one, countdown reads the last line; knights and knaves
reads nothing, because the reasoning is full of such statements.
"""

import ast
import contextlib
import itertools
import operator
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.chats import from_json
from pacedrl.tasks.columns import first_present
from pacedrl.tasks.completions import tagged_answer

GOLD_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "countdown": {"numbers": ("numbers", "nums"), "target": ("target",)},
    "knights_knaves": {"names": ("names",), "solution": ("solution",)},
}
"""The fields of each game's gold answer, and the names that data sets use for them."""

LONGEST_EXPRESSION = 300
"""Maximum length of a countdown expression in characters; a longer expression is wrong."""

LONGEST_ROLES = 4_000
"""Maximum length of a knights-and-knaves answer in characters; a longer answer is wrong."""

_DEEPEST = 30  # nesting of parentheses
_LARGEST = 10**9  # of the numbers in a gold answer
_MOST_NUMBERS = 12
_MOST_SOLVED = 4  # numbers of a puzzle for which all expressions are tried
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-", "·": "*"})
_COMMANDS = [(r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), (r"\left", ""), (r"\right", ""), ("$", "")]
_NUMBERS = re.compile(r"[\[(]?\s*\d+(?:[\s,]+\d+)+\s*[\])]?", re.ASCII)
_EXPRESSION = re.compile(r"[0-9()+\-*/ ]+")
_REFUSED = re.compile(r"\*\*|//|\b0\d|\d{11}")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_STATEMENT = re.compile(r"(?:\(?\d{1,3}[).:]\s*)?(?P<name>\S.*?)\s*(?:\bis\s+an?\b|:)\s*(?P<role>knight|knave)", re.I)
_BETWEEN = re.compile(r"[\n;,.]+(?:\s*and\b)?|\band\b", re.IGNORECASE)
_LIST_DOT = re.compile(r"^(\s*\d{1,3})\.(?=\s)", re.MULTILINE)


def gold_of_fields(game: str, answer: Any, row: dict[str, Any]) -> Any:
    """Return a game's gold answer as one object: ``answer`` if it has all fields, else the columns of the row.

    ``answer`` and each field may be JSON text. If fields are missing in both, ``answer`` is returned unchanged.
    """
    for source in (_parsed(answer), row):
        if isinstance(source, dict):
            known = {str(name): value for name, value in source.items() if value is not None}
            columns = {field: first_present(names, known) for field, names in GOLD_FIELDS[game].items()}
            found = {field: _whole_numbers(_parsed(known[column])) for field, column in columns.items() if column}
            if len(found) == len(columns):
                return found if source is row else source | found
    return answer


def _parsed(value: Any) -> Any:
    """Parse JSON text, or the text of a Python list or dict as in CSV files; return other values unchanged."""
    value = from_json(value)
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(value.strip())
    return value


def _whole_numbers(value: Any) -> Any:
    """Convert to integers: whole floats, and texts such as ``[20 9 24]``."""
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    if isinstance(value, str) and _NUMBERS.fullmatch(value.strip()):
        return [int(number) for number in re.findall(r"\d+", value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def countdown_reward(answer: Any, text: str) -> float:
    """Return 1.0 when the expression that ``text`` states makes the target from the numbers, else 0.0.

    ``answer`` is ``{"numbers": [...], "target": n}``, or the numbers in a string, ``"1 1 4 6"``, for the game of 24.
    Every number must be used exactly once, as in TinyZero's reward. The expression consists of whole numbers without
    leading zeros, ``+ - * /`` (also × ÷ −) and parentheses; ``= target`` may follow. Raises JudgeError when ``answer``
    has another form.
    """
    numbers, target = _puzzle(answer)
    value, used = _evaluate(_expression(text, target))
    left = Counter(numbers)
    left.subtract(used)
    return float(value is not None and value == target and not any(left.values()))


def countdown_gold(answer: Any) -> str | None:
    """Return a completion that solves the puzzle, or None if it has more than four numbers.

    Raises JudgeError as ``countdown_reward`` does, and when the puzzle has no solution.
    """
    numbers, target = _puzzle(answer)
    if len(numbers) > _MOST_SOLVED:
        return None
    expression = _solve([(Fraction(number), str(number)) for number in numbers], target)
    if expression is None:
        raise JudgeError(f"the puzzle has no solution: nothing makes {target} out of {', '.join(map(str, numbers))}")
    return f"<answer>{expression}</answer>"


def _solve(terms: list[tuple[Fraction, str]], target: int) -> str | None:
    """Return an expression that makes the target from all terms, which are values with their text, or None."""
    if len(terms) == 1:
        return terms[0][1] if terms[0][0] == target else None
    for i, j in itertools.permutations(range(len(terms)), 2):
        (left, left_text), (right, right_text) = terms[i], terms[j]
        rest = [term for k, term in enumerate(terms) if k not in (i, j)]
        joined = [(left - right, "-")] + ([(left / right, "/")] if right else [])
        joined += [(left + right, "+"), (left * right, "*")] if i < j else []
        for value, sign in joined:
            found = _solve([*rest, (value, f"({left_text} {sign} {right_text})")], target)
            if found is not None:
                return found
    return None


def knights_knaves_reward(answer: Any, text: str) -> float:
    """Return 1.0 when ``text`` states the right role of every person ("(1) Zoey is a knight"), else 0.0.

    ``answer`` is ``{"names": [...], "solution": [True for a knight, ...]}``. The stated answer must consist of one
    statement for each person and nothing else. Raises JudgeError when ``answer`` has another form.
    """
    roles = _roles(answer)
    stated = tagged_answer(text)
    if stated is None or len(stated) > LONGEST_ROLES:
        return 0.0
    found: dict[str, bool] = {}
    stated = _LIST_DOT.sub(r"\1)", stated)  # "1. Zoey" as "1) Zoey": now every full stop ends a statement
    for part in _BETWEEN.split(stated):
        if not part.strip(" \t\r*"):
            continue
        match = _STATEMENT.fullmatch(part.replace("*", "").strip())
        name = match["name"].lower() if match else ""
        if match is None or name not in roles or name in found:
            return 0.0
        found[name] = match["role"].lower() == "knight"
    return float(found == roles)


def knights_knaves_gold(answer: Any) -> str:
    """Return a completion that states the gold answer. Raises JudgeError as ``knights_knaves_reward`` does."""
    _roles(answer)
    roles = ["knight" if knight else "knave" for knight in answer["solution"]]
    people = zip(answer["names"], roles, strict=True)
    statements = (f"({number}) {name} is a {role}" for number, (name, role) in enumerate(people, 1))
    return "<answer>" + "\n".join(statements) + "</answer>"


def _puzzle(answer: Any) -> tuple[list[int], int]:
    if isinstance(answer, str) and re.fullmatch(r"\d{1,9}(?: \d{1,9}){3}", answer.strip(), re.ASCII):
        answer = {"numbers": [int(number) for number in answer.split()], "target": 24}
    if not isinstance(answer, dict) or not {"numbers", "target"} <= set(answer):
        raise JudgeError(
            "the gold answer is neither {'numbers': [...], 'target': n} nor four numbers for 24; map columns.answer to "
            "one, or name the columns numbers (or nums) and target"
        )
    numbers, target = answer["numbers"], answer["target"]
    whole = isinstance(numbers, list) and 1 <= len(numbers) <= _MOST_NUMBERS
    if not whole or any(type(n) is not int or not 0 <= n <= _LARGEST for n in numbers):
        raise JudgeError(f"the gold answer's numbers must be 1 to {_MOST_NUMBERS} whole numbers from 0 to {_LARGEST}")
    if type(target) is not int:
        raise JudgeError("the gold answer's target must be a whole number")
    return numbers, target


def _roles(answer: Any) -> dict[str, bool]:
    if not isinstance(answer, dict) or not {"names", "solution"} <= set(answer):
        raise JudgeError("the gold answer is no {'names': [...], 'solution': [...]}; map columns.answer to one")
    names, solution = answer["names"], answer["solution"]
    lists = isinstance(names, list) and isinstance(solution, list) and len(names) == len(solution) > 0
    if not lists or not all(isinstance(name, str) and name for name in names):
        raise JudgeError("the gold answer's names and solution must be lists of the same length")
    if not all(isinstance(knight, bool) for knight in solution) or len({name.lower() for name in names}) < len(names):
        raise JudgeError("the gold answer's names must differ and its solution must hold true and false")
    return {name.lower(): knight for name, knight in zip(names, solution, strict=True)}


def _expression(text: str, target: int) -> str:
    stated = tagged_answer(text)
    if stated is None:
        stated = text.rstrip()[-LONGEST_EXPRESSION - 1 :].rpartition("\n")[2]
    if len(stated) > LONGEST_EXPRESSION:
        return ""
    stated = stated.translate(_SIGNS)
    for command, sign in _COMMANDS:
        stated = stated.replace(command, sign)
    left, equals, right = stated.partition("=")
    return left.strip() if not equals or right.strip(" .") == str(target) else ""


def _evaluate(expression: str) -> tuple[Fraction | None, list[int]]:
    """Return the value and the numbers that it uses; (None, []) if the text is not such an expression."""
    depths = itertools.accumulate({"(": 1, ")": -1}.get(character, 0) for character in expression)
    if not _EXPRESSION.fullmatch(expression) or _REFUSED.search(expression) or max(depths) > _DEEPEST:
        return None, []
    try:
        tree = ast.parse(expression, mode="eval")  # the text is parsed, never run
        numbers: list[int] = []
        return _value(tree.body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None, []


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        if len(numbers) > _MOST_NUMBERS:  # this limits the size of the value
            raise ValueError("more numbers than a puzzle has")
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _OPERATORS:
        raise ValueError("neither a number nor one of + - * /")
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    return _OPERATORS[type(node.op)](left, right)
