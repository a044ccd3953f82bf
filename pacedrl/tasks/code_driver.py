"""Runs a row's tests inside a sandbox, against a candidate that lives in another one, and reports what came of them.

This file is shown to the sandbox without the rest of the package but for ``code_candidate``. Test code comes from the
dataset and is trusted to be honest, not to be harmless. What the candidate says is trusted in nothing: its answers
become values of built-in types, built here, so that no comparison runs its code; and once it broke the protocol
(it ended, wrote garbage, sent too much) no test can make it pass.

The job is one JSON object on standard input. The report is lines of JSON on standard output, each with the job's token:
``started`` when the tests are usable and the candidate is about to run, then ``passed``; or ``unusable`` with a reason.

Arguments that the candidate changes in place stay unchanged here: tests see what it returns and raises.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import math
import os
import re
from collections.abc import Callable
from typing import IO, Any

from pacedrl.tasks.code_candidate import NotPlainDataError, assemble, closed, decode, encode, receive, send

TOLERANCE = 1e-6
"""Absolute, for floating-point numbers that a function returns; relative too, for those that a program prints."""

Judge = Callable[["Candidate"], bool]

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d+")
# What EvalPlus itself compares otherwise: as sets, and by whether there is a result at all.
_LISTS_LIKE_SETS = ("similar_elements", "common_in_nested_lists", "intersection_array", "find_dissimilar", "Diff")
_COMPARED_AS_SETS = frozenset([*_LISTS_LIKE_SETS, "find_char_long", "extract_singly", "larg_nnum"])
_COMPARED_AS_TRUTH = frozenset(["check_str", "text_match_three", "text_starta_endb"])


class UnusableError(BaseException):
    """The row's tests cannot judge anything. No ``Exception``: tests must not catch it."""


class CandidateLostError(BaseException):
    """The candidate ended or broke the protocol. No ``Exception``, as above."""


def main(seal: Callable[[], None], read: int, write: int) -> None:
    """Judge the job on standard input; the candidate's answers come from ``read``, its requests go to ``write``."""
    with os.fdopen(0, "rb", closefd=False) as file:
        job = json.load(file)
    report_to = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # for what tests print
        os.dup2(null, descriptor)

    def report(**what: Any) -> None:
        send(report_to, {"token": job["token"], **what})

    seal()
    candidate = Candidate(os.fdopen(read, "rb"), os.fdopen(write, "wb"))
    try:
        judge = _prepare(job["tests"])
        candidate.await_ready()
        report(started=True)
        report(passed=_passes(judge, candidate, job))
    except UnusableError as error:
        report(unusable=str(error)[:500])


def _prepare(tests: dict[str, Any]) -> Judge:
    kinds = {"program": _prepare_program, "calls": _prepare_calls, "code": _prepare_code, "evalplus": _prepare_evalplus}
    try:
        return kinds[tests["kind"]](tests)
    except Exception as error:  # test code and canonical solutions may raise anything
        raise UnusableError(f"the row's tests do not work: {type(error).__name__}: {error}") from None


def _passes(judge: Judge, candidate: Candidate, job: dict[str, Any]) -> bool:
    try:
        candidate.load(job["code"], program=job["tests"]["kind"] == "program")
        passed = judge(candidate)
    except UnusableError:
        raise
    except BaseException:  # a failed assertion, a lost candidate, a result the tests choke on, SystemExit
        return False
    if not candidate.asked:
        raise UnusableError("the row's tests never call the function that they test")
    return passed and not candidate.lost


class Candidate:
    """The candidate's functions, from afar."""

    def __init__(self, answers: IO[bytes], requests: IO[bytes]) -> None:
        self._answers = answers
        self._requests = requests
        self.asked = False
        """Whether anything was asked of it."""
        self.lost = False
        """Whether it broke the protocol."""

    def await_ready(self) -> None:
        """Wait for the process. UnusableError when it ended before it ran anything of the completion's."""
        try:
            ready = receive(self._answers) == "ready"
        except (EOFError, ValueError):
            ready = False
        if not ready:
            raise UnusableError("the candidate's sandbox did not start")

    def load(self, code: dict[str, Any], program: bool) -> None:
        """Run its definitions; any exception when they fail."""
        self._ask({"code": code, "program": program})

    def call(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """What its function returns, or the exception it raises, as the nearest built-in one."""
        self.asked = True
        try:
            encoded = encode(list(arguments)), encode(keywords)
        except NotPlainDataError as error:
            raise UnusableError(f"the row's tests pass {error}") from None
        return self._ask([name, *encoded])

    def run(self, text: str) -> str:
        """What its program prints, given ``text`` on standard input; an exception when it fails."""
        self.asked = True
        output = self._ask(text)
        if type(output) is not str:
            raise ValueError
        return output

    def _ask(self, request: Any) -> Any:
        if self.lost:
            raise CandidateLostError
        try:
            send(self._requests, request)
            kind, *content = receive(self._answers)
            raised = _exception(*content) if kind == "error" else None
            value = None if raised else decode(*content)
        except BaseException:  # its end, garbage, too long, too deep, too large: all its own doing
            self.lost = True
            raise CandidateLostError from None
        if raised:
            raise raised
        return value


def _exception(types: list[str], message: str) -> Exception:
    """The first of ``types`` that can be had. Those that end an iteration or the driver cannot: they are no failure."""
    for name in types:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and "Iteration" not in name:
            try:
                return kind(str(message))
            except TypeError:  # it needs more than a message; its base class may not
                continue
    return Exception(str(message))


def _prepare_program(tests: dict[str, Any]) -> Judge:
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    return lambda candidate: all(prints_the_same(candidate.run(given), expected) for given, expected in pairs)


def prints_the_same(printed: str, expected: str) -> bool:
    """Whether two outputs agree, but for space at the end of lines and of the whole, and the last digits of floats."""
    lines, expected_lines = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    if lines == expected_lines:
        return True
    return len(lines) == len(expected_lines) and all(map(_tokens_agree, lines, expected_lines))


def _tokens_agree(line: str, expected_line: str) -> bool:
    tokens, expected = line.split(), expected_line.split()
    return len(tokens) == len(expected) and all(map(_token_agrees, tokens, expected))


def _token_agrees(token: str, expected: str) -> bool:
    if token == expected:
        return True
    if not (_NUMBER.fullmatch(token) and _NUMBER.fullmatch(expected)):
        return False
    if _WHOLE.fullmatch(expected):  # a large whole number has no digits to spare
        return not _WHOLE.fullmatch(token) and abs(float(token) - float(expected)) <= TOLERANCE
    return math.isclose(float(token), float(expected), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _prepare_calls(tests: dict[str, Any]) -> Judge:
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))

    def judge(candidate: Candidate) -> bool:
        for arguments, expected in pairs:
            value = _as_json(candidate.call(tests["name"], *arguments))
            wrapped = isinstance(expected, list) and len(expected) == 1 and same(value, expected[0])
            if not (same(value, expected) or wrapped):  # some data sets put the one result into a list
                return False
        return True

    return judge


def _as_json(value: Any) -> Any:
    """As expected results come, which have no tuples."""
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _prepare_code(tests: dict[str, Any]) -> Judge:
    """Test code in which one name is the candidate's; all others are its own, the prompt's, or make it unusable."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compile(closed(tests["prompt"]), "<prompt>", "exec"), namespace)
    exec(compile(tests["setup"], "<setup>", "exec"), namespace)
    tree = ast.parse(tests["code"])
    free = _free_names(tree) - set(namespace)
    name = tests["name"] or (min(free) if len(free) == 1 else None)
    if name is None or free - {name}:
        raise NameError(f"they use names that nothing defines: {', '.join(sorted(free - {name})) or 'none'}")
    code = compile(tree, "<tests>", "exec")
    if "random" in tests["code"]:  # a verdict should not depend on the inputs drawn
        import random

        random.seed(0)

    def judge(candidate: Candidate) -> bool:
        namespace[name] = functools.partial(candidate.call, name)
        exec(code, namespace)
        return True

    return judge


def _free_names(tree: ast.AST) -> set[str]:
    """Names that are read somewhere and bound nowhere; scopes are not told apart."""
    read: set[str] = set()
    bound = set(dir(builtins)) | {"__name__"}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
    return read - bound


def _prepare_evalplus(tests: dict[str, Any]) -> Judge:
    """The canonical solution's results on all inputs are what is expected."""
    namespace: dict[str, Any] = {"__name__": "canonical"}
    source = tests["canonical"]
    exec(compile(assemble(source, tests["prompt"], tests["name"]), "<canonical>", "exec"), namespace)
    types = _argument_types(tests["assertion"], tests["name"], tests["base"])
    inputs = [encode(_typed_arguments(row, types)) for row in tests["inputs"]]
    canonical = namespace[tests["name"]]
    cases = [(given, canonical(*decode(given))) for given in inputs]
    agrees = _agreement(tests["name"], float(tests["atol"]), namespace)

    def judge(candidate: Candidate) -> bool:
        for given, expected in cases:
            arguments = decode(given)
            if not agrees(candidate.call(tests["name"], *arguments), expected, arguments):
                return False
        return True

    return judge


def _agreement(name: str, atol: float, namespace: dict[str, Any]) -> Callable[[Any, Any, list[Any]], bool]:
    """How a result is compared with the canonical one, given the arguments."""
    if name == "find_zero":  # any zero will do
        return lambda value, expected, arguments: abs(namespace["poly"](*arguments, value)) <= max(atol, TOLERANCE)
    if name in _COMPARED_AS_SETS:
        return lambda value, expected, arguments: set(value) == set(expected)
    if name in _COMPARED_AS_TRUTH:
        return lambda value, expected, arguments: _truth(value) == _truth(expected)
    return lambda value, expected, arguments: same(value, expected, max(atol, TOLERANCE))


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None


def same(value: Any, expected: Any, atol: float = TOLERANCE) -> bool:
    """Equality, but floats may differ by ``atol`` and 1e-7 of their size, wherever they stand, and NaN equals NaN."""
    if value == expected:
        return True
    if isinstance(expected, float | complex) and isinstance(value, int | float | complex):
        both_nan = value != value and expected != expected
        return both_nan or abs(value - expected) <= atol + 1e-7 * abs(expected) < math.inf
    if type(value) is not type(expected):
        return False
    if isinstance(expected, list | tuple):
        return len(value) == len(expected) and all(same(*pair, atol) for pair in zip(value, expected, strict=True))
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[key], expected[key], atol) for key in expected)
    return False


def _argument_types(assertions: str, name: str, inputs: list[list[Any]]) -> list[Any]:
    """Of each argument, what the calls in ``assertions`` say of its type. Empty where they say nothing.

    Inputs are JSON, in which tuples and sets are lists and complex numbers strings; the same calls are written out in
    the row's assertions, in Python.
    """
    types: list[Any] = []
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


def _type_of(value: Any) -> Any:
    """A pair: the type of a value, and that of what it contains, which is None where it contains nothing."""
    if isinstance(value, dict):
        return dict, functools.reduce(_merged, map(_type_of, value.values()), None)
    if isinstance(value, list | tuple | set):
        return type(value), functools.reduce(_merged, map(_type_of, value), None)
    return (complex if isinstance(value, int | float | complex) else type(value)), None


def _merged(left: Any, right: Any) -> Any:
    """Where two types differ, that of a container, and rather one that JSON does not have."""
    if left is None or right is None:
        return left or right
    (left_kind, left_content), (right_kind, right_content) = left, right
    rank = (str, complex, dict, list, set, tuple)
    kind = max(left_kind, right_kind, key=lambda kind: rank.index(kind) if kind in rank else -1)
    return kind, _merged(left_content, right_content)


def _typed_arguments(row: list[Any], types: list[Any]) -> list[Any]:
    if len(types) != len(row):
        return row
    return [
        _number(value) if kind[0] is complex else _typed(value, kind) for value, kind in zip(row, types, strict=True)
    ]


def _number(value: Any) -> Any:
    """The number that a string holds, in place of the string."""
    try:
        number = complex(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return number.real if isinstance(value, str) and "j" not in value else number


def _typed(value: Any, expected: Any) -> Any:
    kind, content = expected
    if isinstance(value, list):
        # Where lists are nested deeper than in any assertion, the type of the last level known goes on.
        inner = content if content and content[0] in (list, tuple, set, dict) else expected
        items = [_typed(item, inner) for item in value]
        return kind(items) if kind in (tuple, set) else items
    if isinstance(value, dict):
        return {key: _typed(item, content or expected) for key, item in value.items()}
    return value
