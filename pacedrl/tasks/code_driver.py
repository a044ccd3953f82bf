"""Runs a row's tests inside a sandbox, against a candidate that lives in another one, and reports what came of them.

This file is shown to the sandbox without the rest of the package but for the other ``code_`` modules. Test code comes
from the dataset and is trusted to be honest, not to be harmless. What the candidate says is trusted in nothing: its
answers become values of built-in types, built here, so that no comparison runs its code; and once it broke the protocol
(it ended, wrote garbage, sent too much) no test can make it pass.

The job is one JSON object on standard input. The report is lines of JSON on standard output, each with the job's token:
``started`` when the tests are usable and the candidate is about to run, then ``passed``; or ``unusable`` with a reason.
``started`` is the seconds that a canonical solution took, 0 where there is none; beside it stands ``known``, what it
answered, for the next job with these tests, or None where that is longer than ``LONGEST_KNOWN``.

Arguments that the candidate changes in place stay unchanged here: tests see what it returns and raises.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import os
from collections.abc import Callable
from typing import IO, Any

from pacedrl.tasks.code_candidate import NotPlainDataError, closed, decode, encode, receive, send
from pacedrl.tasks.code_compare import prints_the_same, same
from pacedrl.tasks.code_evalplus import Cases

LONGEST_KNOWN = 256 << 10
"""Bytes of a canonical solution's answers worth remembering. Longer ones are had again as fast as they are read."""

Judge = Callable[["Candidate"], bool]


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
        judge, known = _prepare(job["tests"])
        candidate.await_ready()
        report(started=known["seconds"] if known else 0.0, known=known if _is_short(known) else None)
        report(passed=_passes(judge, candidate, job))
    except UnusableError as error:
        report(unusable=str(error)[:500])


def _prepare(tests: dict[str, Any]) -> tuple[Judge, dict[str, Any] | None]:
    """What judges, and what is known of the canonical solution, where there is one."""
    kinds = {"program": _prepare_program, "calls": _prepare_calls, "code": _prepare_code}
    try:
        if tests["kind"] == "evalplus":
            cases = Cases(tests)
            return (lambda candidate: cases.judge(candidate.call)), cases.known
        return kinds[tests["kind"]](tests), None
    except Exception as error:  # test code and canonical solutions may raise anything
        raise UnusableError(f"the row's tests do not work: {type(error).__name__}: {error}") from None


def _is_short(known: dict[str, Any] | None) -> bool:
    return known is not None and sum(len(answer or "") for answer in known["answers"]) <= LONGEST_KNOWN


def _passes(judge: Judge, candidate: Candidate, job: dict[str, Any]) -> bool:
    try:
        candidate.load(job["code"], program=job["tests"]["kind"] == "program")
    except BaseException:  # whatever the completion's own definitions raise
        return False
    try:
        passed = judge(candidate)
    except UnusableError:
        raise
    except BaseException as error:  # a failed assertion, a lost candidate, a result the tests choke on, SystemExit
        if candidate.asked or candidate.lost:
            return False
        raise UnusableError(f"the row's tests do not work: {type(error).__name__}: {error}") from None
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
            case ast.AsyncFunctionDef(name=name) | ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.partition(".")[0])
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
    return read - bound
