"""Tests a candidate by EvalPlus' rows: on each input it must return what the canonical solution returns.

There are two departures from EvalPlus 0.3.1. First, the types of inputs that JSON does not have are read from the row's
assertions, while EvalPlus keeps a table by hand: in seven of MBPP+'s 378 rows, EvalPlus has lists where the assertions
have tuples, or the reverse, or 1 for 1+0j. Second, an input is skipped if the canonical solution itself runs out of the
sandbox's memory on it, or returns more than a message may hold.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pacedrl.tasks.code.candidate import assemble
from pacedrl.tasks.code.compare import TOLERANCE, same
from pacedrl.tasks.code.implicit_imports import compiled
from pacedrl.tasks.code.values import LONGEST_MESSAGE, decode, encode, send_items

# Functions whose results EvalPlus compares as sets, and functions for which it only compares whether there is a result.
_LISTS_LIKE_SETS = ("similar_elements", "common_in_nested_lists", "intersection_array", "find_dissimilar", "Diff")
_COMPARED_AS_SETS = (*_LISTS_LIKE_SETS, "find_char_long", "extract_singly", "larg_nnum")
_COMPARED_AS_TRUTH = ("check_str", "text_match_three", "text_starta_endb")


def prepare(tests: dict[str, Any]) -> tuple[Callable[[Callable[..., Any]], bool], dict[str, Any]]:
    """Return a test, and what is known of the canonical solution: its ``answers`` and the ``seconds`` they took.

    The test tells whether ``call(name, *arguments)`` agrees with the canonical solution on all inputs. An answer is a
    JSON text, or None for an input to skip. The canonical solution is run unless ``tests["known"]`` is what an earlier
    call returned; its exceptions pass through.
    """
    name = tests["name"]
    namespace: dict[str, Any] = {"__name__": "canonical"}
    exec(compiled(assemble(tests["canonical"], tests["prompt"], name), "<canonical>"), namespace)
    types = _argument_types(tests["assertion"], name, tests["base"])
    inputs = [encode(_typed_arguments(row, types)) for row in tests["inputs"]]
    known = tests.get("known")
    if known is None:
        start = time.perf_counter()
        answers = [_answer(namespace[name], given) for given in inputs]
        known = {"answers": answers, "seconds": time.perf_counter() - start}
    if not any(known["answers"]):
        raise ValueError("the canonical solution's results are all too large for the sandbox")
    atol = max(float(tests["atol"]), TOLERANCE)

    def test(call: Callable[..., Any]) -> bool:
        for given, answer in zip(inputs, known["answers"], strict=True):
            if answer is not None:
                arguments = decode(given)
                value, expected = call(name, *arguments), decode(json.loads(answer))
                if not _agrees(name, value, expected, arguments, atol, namespace):
                    return False
        return True

    return test, known


def _answer(canonical: Callable[..., Any], given: Any) -> str | None:
    try:
        answer = json.dumps(encode(canonical(*decode(given)), send_items))
    except MemoryError:
        return None
    return answer if len(answer) < LONGEST_MESSAGE - 100 else None  # the message also says that it is a value


def _agrees(name: str, value: Any, expected: Any, arguments: list[Any], atol: float, namespace: dict[str, Any]) -> bool:
    """Tell whether a result agrees with the canonical solution's up to ``atol``; EvalPlus compares some otherwise."""
    if name == "find_zero":  # any zero will do
        return bool(abs(namespace["poly"](*arguments, value)) <= atol)
    if name in _COMPARED_AS_SETS:
        return set(value) == set(expected)
    if name in _COMPARED_AS_TRUTH:
        return _truth(value) == _truth(expected)
    other_reading = _OTHER_READINGS.get(name)
    return same(value, expected, atol) or (other_reading is not None and value == other_reading(*arguments))


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None


def _pyramid_surface(edge: float, height: float) -> int:
    """Compute it with "height" read as that of the apex above the base, not as that of a side's triangle."""
    return round(edge**2 + 2 * edge * math.hypot(edge / 2, height))


def _digit_distance(first: int, second: int) -> int:
    """Compute it with the shorter number filled up with zeros, so that no digit of the longer one is left out."""
    digits = max(len(str(first)), len(str(second)))
    pairs = zip(str(first).zfill(digits), str(second).zfill(digits), strict=True)
    return sum(abs(int(left) - int(right)) for left, right in pairs)


_OTHER_READINGS: dict[str, Callable[..., int]] = {
    "surface_Area": _pyramid_surface,
    "digit_distance_nums": _digit_distance,
}


class _Type(NamedTuple):
    kind: type
    content: _Type | None = None
    nests: bool = False
    """Whether it stands beside values that contain nothing. Such containers may be nested deeper than was seen."""


def _argument_types(assertions: str, name: str, inputs: list[list[Any]]) -> list[_Type | None]:
    """Return each argument's type, as far as the calls in ``assertions`` tell it; empty if they tell nothing.

    Inputs are JSON, in which tuples and sets are lists and complex numbers strings; the row's assertions have the same
    calls in Python.
    """
    types: list[_Type | None] = []
    for arguments, row in zip(_literal_calls(assertions, name), inputs, strict=False):
        found = list(map(_type_of, arguments))
        if len(found) == len(row):
            types = [_merged(*pair) for pair in zip(types or found, found, strict=True)]
    return types


def _literal_calls(assertions: str, name: str) -> list[list[Any]]:
    """Return the arguments of each call, none if they are expressions."""
    found = []
    for node in ast.walk(ast.parse(assertions)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            try:
                found.append([ast.literal_eval(argument) for argument in node.args])
            except ValueError:
                found.append([])
    return found


def _type_of(value: Any) -> _Type:
    if isinstance(value, dict | list | tuple | set):
        items = value.values() if isinstance(value, dict) else value
        return _Type(type(value), functools.reduce(_merged, map(_type_of, items), None))
    return _Type(complex if isinstance(value, int | float | complex) else type(value))


def _merged(left: _Type | None, right: _Type | None) -> _Type | None:
    """Merge two types. Containers win, among them those that JSON does not have; then strings, before numbers."""
    if left is None or right is None:
        return left or right
    rank = (complex, str, dict, list, set, tuple)
    kind = max(left.kind, right.kind, key=lambda kind: rank.index(kind) if kind in rank else -1)
    nests = left.nests or right.nests or _contains(left) != _contains(right)
    return _Type(kind, _merged(left.content, right.content), nests)


def _contains(type_: _Type) -> bool:
    return type_.kind in (dict, list, tuple, set)


def _typed_arguments(row: list[Any], types: list[_Type | None]) -> list[Any]:
    if len(types) != len(row):
        return row
    return [
        _number(value) if known and known.kind is complex else _typed(value, known)
        for value, known in zip(row, types, strict=True)
    ]


def _number(value: Any) -> Any:
    """Return the number that a string holds: complex numbers come as strings. Other values stay as they are."""
    if not isinstance(value, str):
        return value
    try:
        number = complex(value)
    except ValueError:
        return value
    return number if "j" in value else number.real


def _typed(value: Any, known: _Type | None) -> Any:
    """Convert lists to the known types. Deeper lists, whose type is unknown, stay lists unless the type nests."""
    if known is None:
        return value
    content = known.content
    if known.nests and not (content and _contains(content)):
        content = known
    if isinstance(value, list):
        items = [_typed(item, content) for item in value]
        return known.kind(items) if known.kind in (tuple, set) else items
    if isinstance(value, dict):
        return {key: _typed(item, content) for key, item in value.items()}
    return value
