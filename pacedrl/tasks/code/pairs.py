"""Reads tests that are pairs of inputs and outputs, in the forms of public data sets.

A pair tests one of three things. A program reads the input and prints the output. A function, named by ``fn_name`` or
by a row's ``metadata`` (LiveCodeBench's form), takes the input as arguments and returns the output. For a class, as in
LeetCode's design problems, the input is two lists: operations, beginning with the class, and the arguments of each; the
output is the list of what each operation returned.

Inputs and outputs of functions and classes are values, or text: JSON, or a Python literal.
"""

import ast
import contextlib
import json
import re
from decimal import Decimal
from typing import Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.code.values import NotPlainDataError, encode


def find_pairs(value: Any, columns: dict[str, Any]) -> dict[str, Any] | None:
    """Return the tests that ``value`` holds, as ``driver`` takes them; None if it holds none.

    ``columns`` are the whole row's. Raises JudgeError if the tests are incomplete or no sandbox can be sent them.
    """
    value = _json(value)
    if isinstance(value, dict) and "test_cases" in value:
        value = _json(value["test_cases"])
    if isinstance(value, list) and value and all(isinstance(item, dict) and "input" in item for item in value):
        value = _as_lists(value, columns)
    if not isinstance(value, dict) or "inputs" not in value or "outputs" not in value:
        return None
    inputs, outputs = value["inputs"], value["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise JudgeError("the row's 'inputs' and 'outputs' are not two lists of the same length, of at least one")
    name = value.get("fn_name")
    pairs = list(zip(inputs, outputs, strict=True))
    cases = [None if value.get("reads_input") else _operations(given, output, name) for given, output in pairs]
    if all(cases):
        return {"kind": "operations", "cases": [_encoded(_complete(case)) for case in cases if case]}
    if not name:
        return {"kind": "program", "inputs": list(map(_text, inputs)), "outputs": list(map(_text, outputs))}
    are_wrapped = all(isinstance(output, list) and len(output) == 1 for output in outputs)
    readings = [_outputs(output, is_text=isinstance(given, str)) for given, output in pairs]
    if are_wrapped:  # APPS puts results into lists of one, other sets have lists as results: either may be meant
        readings = [[*each, output[0]] for each, output in zip(readings, outputs, strict=True)]
    arguments = [_encoded(_arguments(item)) for item in inputs]
    return {"kind": "calls", "name": name, "inputs": arguments, "outputs": list(map(_encoded, readings))}


def check_signature(source: str) -> None:
    """Raise JudgeError if a function's head or task shows that JSON cannot hold what it takes or returns."""
    if node := re.search(r"\b(TreeNode|ListNode)\b", source):
        raise JudgeError(f"the row's function takes or returns a {node[0]}, which inputs and outputs cannot hold")
    if re.search("do not return anything", source, re.IGNORECASE):
        raise JudgeError("the row's function changes an argument in place, and only what it returns can be judged")


def _as_lists(items: list[dict[str, Any]], columns: dict[str, Any]) -> dict[str, Any]:
    """Convert pairs that are a dict each to two lists; ``reads_input`` says that they surely test a program."""
    names = {_function_name(item) or _function_name(columns) for item in items}
    name = names.pop() if len(names) == 1 else None
    kinds = {str(item.get("testtype") or item.get("type")) for item in items}
    if name is None and kinds & {"functional", "function_call"}:
        raise JudgeError(
            "the row's tests call a function, but no 'fn_name' or 'func_name' in 'metadata' says which one"
        )
    reads_input = any(kind.startswith("stdin") for kind in kinds)
    return {
        "inputs": [item["input"] for item in items],
        "outputs": [item.get("output") for item in items],
        "fn_name": None if reads_input else name,
        "reads_input": reads_input,
    }


def _function_name(row: dict[str, Any]) -> str | None:
    metadata = _json(row.get("metadata"))
    name = row.get("fn_name") or (metadata.get("func_name") if isinstance(metadata, dict) else None)
    return name if isinstance(name, str) else None


def _arguments(value: Any) -> list[Any]:
    """Return arguments that are a list, or lines of text."""
    return value if isinstance(value, list) else [_readings(line)[-1] for line in _text(value).splitlines()]


def _operations(value: Any, output: Any, name: str | None) -> tuple[list[str], list[list[Any]], Any] | None:
    """Return operations of the class ``name``, if known, with their arguments and results; None for other inputs.

    If no name is known, the lists may also be what a program reads. A class is then recognized by its capital letter,
    and by the null in its place in the output.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):  # a program's input may be long
        return None
    parts = _unwrapped(_arguments(value))
    if len(parts) != 2 or not all(isinstance(part, list) for part in parts):
        return None
    names, calls = parts
    if not names or not all(isinstance(each, str) and each.isidentifier() for each in names):
        return None
    if len(calls) != len(names) or not all(isinstance(call, list) for call in calls):
        return None
    results = _unwrapped(_readings(output)[-1])  # some data sets put the list of results into another one
    is_class = names[0][0].isupper() and isinstance(results, list) and bool(results) and results[0] is None
    return (names, calls, results) if name == names[0] or (name is None and is_class) else None


def _complete(case: tuple[list[str], list[list[Any]], Any]) -> list[Any]:
    names, _, results = case
    if not isinstance(results, list) or len(results) != len(names):
        raise JudgeError(f"the row tests {len(names)} operations of {names[0]}, but has no list of as many results")
    return list(case)


def _unwrapped(value: Any) -> Any:
    """Return the list that is the only item of ``value``, if there is one, else ``value``."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _outputs(value: Any, is_text: bool) -> list[Any]:
    """Return what a function may return: the value, or what text says.

    If the arguments are not text (``is_text``), text may also be meant as a string.
    """
    return _readings(value) if is_text or not isinstance(value, str) else [value, *_readings(value)]


def _readings(value: Any) -> list[Any]:
    """Return what text says: as JSON; if it is not JSON, the text itself and, if it is one, the Python literal."""
    if not isinstance(value, str):
        return [value]
    with contextlib.suppress(ValueError, RecursionError):
        return [_loads(value)]
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return [value, ast.literal_eval(value.strip())]
    return [value]


def _json(value: Any) -> Any:
    """Return what a JSON string says; any other value as it is."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            return _loads(value)
    return value


def _loads(text: str) -> Any:
    return json.loads(text, parse_int=lambda digits: int(Decimal(digits)))  # int() takes no more than 4300 digits


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_text, value))
    return str(Decimal(value)) if type(value) is int else str(value)  # as above, for str()


def _encoded(value: Any) -> Any:
    try:
        return encode(value)
    except NotPlainDataError as error:
        raise JudgeError(f"the row's tests hold a value of type {error}, which is not plain data") from None
