"""Judges a candidate by EvalPlus' rows: on each input it must return what the canonical solution returns.

This file is shown to the sandbox of the tests (see ``driver``), so it imports the standard library only.

Two departures from EvalPlus 0.3.1. The types of inputs, which JSON does not have, are read off the row's assertions,
where EvalPlus keeps a table by hand: of MBPP+'s 378 rows seven have tuples where EvalPlus has lists, or the reverse,
or 1 for 1+0j. And an input is not asked where the canonical solution itself runs out of the sandbox's memory or returns
more than a message may hold.
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
from pacedrl.tasks.code.names import compiled
from pacedrl.tasks.code.values import LONGEST_MESSAGE, decode, encode, send_items

Agreement = Callable[[Any, Any, list[Any]], bool]
"""Whether a result agrees with the canonical solution's, given the arguments."""

# What EvalPlus itself compares otherwise: as sets, and by whether there is a result at all.
_LISTS_LIKE_SETS = ("similar_elements", "common_in_nested_lists", "intersection_array", "find_dissimilar", "Diff")
_COMPARED_AS_SETS = frozenset([*_LISTS_LIKE_SETS, "find_char_long", "extract_singly", "larg_nnum"])
_COMPARED_AS_TRUTH = frozenset(["check_str", "text_match_three", "text_starta_endb"])


class Cases:
    """A row's inputs and what the canonical solution returns on them."""

    def __init__(self, tests: dict[str, Any]) -> None:
        """Ask the canonical solution, unless ``tests["known"]`` is what ``known`` once gave. Its exceptions pass."""
        self._name = tests["name"]
        namespace: dict[str, Any] = {"__name__": "canonical"}
        source = assemble(tests["canonical"], tests["prompt"], self._name)
        exec(compiled(source, "<canonical>"), namespace)
        types = _argument_types(tests["assertion"], self._name, tests["base"])
        self._inputs = [encode(_typed_arguments(row, types)) for row in tests["inputs"]]
        known = tests.get("known")
        if known is None:
            start = time.perf_counter()
            answers = [_answer(namespace[self._name], given) for given in self._inputs]
            known = {"answers": answers, "seconds": time.perf_counter() - start}
        self.known: dict[str, Any] = known
        """``answers`` of the canonical solution as JSON texts, None for inputs not to ask; ``seconds`` they took."""
        if not any(known["answers"]):
            raise ValueError("the canonical solution's results are all too large for the sandbox")
        self._agrees = _agreement(self._name, float(tests["atol"]), namespace)

    def judge(self, call: Callable[..., Any]) -> bool:
        """Whether ``call(name, *arguments)`` agrees with the canonical solution on all inputs; its exceptions pass."""
        for given, answer in zip(self._inputs, self.known["answers"], strict=True):
            if answer is None:
                continue
            arguments = decode(given)
            if not self._agrees(call(self._name, *arguments), decode(json.loads(answer)), arguments):
                return False
        return True


def _answer(canonical: Callable[..., Any], given: Any) -> str | None:
    try:
        answer = json.dumps(encode(canonical(*decode(given)), send_items))
    except MemoryError:
        return None
    return answer if len(answer) < LONGEST_MESSAGE - 100 else None  # the message says that it is a value


def _agreement(name: str, atol: float, namespace: dict[str, Any]) -> Agreement:
    """EvalPlus' own exceptions, by the name of the function, and equality up to ``atol`` for all others."""
    if name == "find_zero":  # any zero will do
        return lambda value, expected, arguments: abs(namespace["poly"](*arguments, value)) <= max(atol, TOLERANCE)
    if name in _COMPARED_AS_SETS:
        return lambda value, expected, arguments: set(value) == set(expected)
    if name in _COMPARED_AS_TRUTH:
        return lambda value, expected, arguments: _truth(value) == _truth(expected)
    equal: Agreement = lambda value, expected, arguments: same(value, expected, max(atol, TOLERANCE))  # noqa: E731
    if name in _OTHER_READINGS:
        other = _OTHER_READINGS[name]
        return lambda value, expected, arguments: equal(value, expected, arguments) or value == other(*arguments)
    return equal


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None


def _pyramid_surface(edge: float, height: float) -> int:
    """Where "height" is that of the apex above the base, not of a side's triangle."""
    return round(edge**2 + 2 * edge * math.hypot(edge / 2, height))


def _digit_distance(first: int, second: int) -> int:
    """Where the shorter number is filled with zeros, and nothing of the longer one left out."""
    digits = max(len(str(first)), len(str(second)))
    pairs = zip(str(first).zfill(digits), str(second).zfill(digits), strict=True)
    return sum(abs(int(left) - int(right)) for left, right in pairs)


_OTHER_READINGS: dict[str, Callable[..., Any]] = {
    "surface_Area": _pyramid_surface,
    "digit_distance_nums": _digit_distance,
}


class _Type(NamedTuple):
    """The type of a value, and that of what it contains."""

    kind: type
    content: _Type | None = None
    nests: bool = False
    """Whether it stands beside values that contain nothing. Such containers may be nested deeper than was seen."""


def _argument_types(assertions: str, name: str, inputs: list[list[Any]]) -> list[_Type | None]:
    """Of each argument, what the calls in ``assertions`` say of its type. Empty where they say nothing.

    Inputs are JSON, in which tuples and sets are lists and complex numbers strings; the same calls are written out in
    the row's assertions, in Python.
    """
    types: list[_Type | None] = []
    for arguments, row in zip(_literal_calls(assertions, name), inputs, strict=False):
        found = list(map(_type_of, arguments))
        if len(found) == len(row):
            types = [_merged(*pair) for pair in zip(types or found, found, strict=True)]
    return types


def _literal_calls(assertions: str, name: str) -> list[list[Any]]:
    """The arguments of each call, none where they are expressions."""
    found = []
    for node in ast.walk(ast.parse(assertions)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            try:
                found.append([ast.literal_eval(argument) for argument in node.args])
            except ValueError:
                found.append([])
    return found


def _type_of(value: Any) -> _Type:
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list | tuple | set):
        return _Type(type(value), functools.reduce(_merged, map(_type_of, items), None))
    return _Type(complex if isinstance(value, int | float | complex) else type(value))


def _merged(left: _Type | None, right: _Type | None) -> _Type | None:
    """Where two types differ, that of a container, and rather one that JSON does not have; no number, but a string."""
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
    """The number that a string holds, in place of the string: complex numbers come as strings."""
    try:
        number = complex(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return number.real if isinstance(value, str) and "j" not in value else number


def _typed(value: Any, known: _Type | None) -> Any:
    """Lists become what is known of them; deeper than that they stay lists, but for those that nest."""
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
