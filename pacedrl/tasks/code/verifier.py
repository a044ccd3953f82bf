"""Judges Python code by a row's tests. The code is hostile: whatever it does, it earns its reward by passing them.

Four kinds of tests are told by a row's columns, in this order:

- EvalPlus: ``base_input``, ``plus_input``, ``canonical_solution``, ``entry_point``, ``atol``;
- HumanEval: ``test``, which defines ``check(candidate)``, and ``entry_point``; or any other test code in ``test``;
- MBPP: ``test_list``, assertions, with ``test_imports`` and ``test_setup_code``;
- pairs of inputs and outputs, in the answer or one of the columns in ``PAIR_COLUMNS``, also as a JSON string:
  ``{"inputs": [...], "outputs": [...]}`` of a program, or of the function or class ``fn_name``; or a list of
  ``{"input": ..., "output": ...}``. See ``pairs``.

Two sandboxes are started for every completion. In one the completion's code runs, knowing nothing of the tests; in the
other the tests, which reach that code through pipes, in plain data. See ``candidate`` and ``driver``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import select
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import candidate, compare, driver, evalplus, names, objects, remote, sandbox, values
from pacedrl.tasks.code.blocks import extract
from pacedrl.tasks.code.pairs import check_signature, find_pairs
from pacedrl.tasks.code.sandbox import Mode
from pacedrl.types import Prompt

PAIR_COLUMNS = ("input_output", "test_cases", "tests", "ground_truth", "verification_info")

START_LIMIT_S = 5.0
"""Seconds until the tests are read and both sandboxes running. Later is an error."""
CANONICAL_LIMIT_S = 60.0
"""Seconds more that an EvalPlus row's canonical solution may take on all inputs. Longer is an error."""
CANONICAL_FACTOR = 4.0
"""How much longer a completion may take than the canonical solution, where that is more than ``timeout_s``."""

_LONGEST_REPORT = 2 * driver.LONGEST_KNOWN  # bytes
_REMEMBERED = 256  # rows
_CANDIDATE = [Path(str(module.__file__)) for module in (candidate, names, values)]
_DRIVER = [Path(str(module.__file__)) for module in (driver, compare, evalplus, objects, remote)] + _CANDIDATE
_IDENTIFIER = re.compile(r"\w+")
_CALLED = re.compile(r"(\w+)\s*\(")


@dataclass(frozen=True)
class CodeSettings:
    """How a completion's code is run."""

    sandbox: Mode = "bubblewrap"
    """See ``pacedrl.tasks.code.sandbox``."""
    timeout_s: float = 4.0
    """Wall-clock seconds for all tests of a completion; past it the reward is 0. Where an EvalPlus row's canonical
    solution needs more than a quarter of it, four times what that needs, as EvalPlus does, but not above
    ``CANONICAL_LIMIT_S``. A verdict may take ``START_LIMIT_S`` more, and the canonical solution's time."""
    memory_mb: int = 1024
    """Address space in MiB of each process, of which the completion may start a few."""


def code_reward(prompt: Prompt, text: str, settings: CodeSettings) -> float:
    """1.0 when the code in ``text`` passes all tests of the row in time, else 0.0.

    JudgeError when the row has no tests, they do not work, or the sandboxes do not start; whatever happens once the
    code runs is its own doing. ``sandbox.check`` should have been called before.
    """
    tests = find_tests(prompt)
    name = prompt.columns.get("entry_point")
    code = {
        "text": extract(text, _wanted(tests)),
        "prompt": _prompt_source(prompt) if name else "",
        "entry_point": name,
    }
    row = _row_key(tests, settings) if tests["kind"] == "evalplus" else None
    known = _answers.get(row) if row else None
    asked_s = CANONICAL_LIMIT_S if row and known is None else 0.0
    token = secrets.token_hex(16)
    job = {"token": token, "code": code, "tests": tests | ({"known": known} if known else {})}
    with tempfile.TemporaryFile() as errors, _judging(job, settings, errors) as descriptor:
        report = _Report(descriptor, token)
        first = report.line(START_LIMIT_S + asked_s)
        if "started" not in first:
            raise JudgeError(_why_not_started(first, errors))
        if row and first["known"]:
            _remember(row, first["known"])
        last = report.line(max(settings.timeout_s, min(CANONICAL_FACTOR * first["started"], CANONICAL_LIMIT_S)))
        if "unusable" in last:
            raise JudgeError(last["unusable"])
        return float(last.get("passed") is True)


def _why_not_started(first: dict[str, Any], errors: IO[bytes]) -> str:
    if "unusable" in first:
        return str(first["unusable"])
    reason = sandbox.last_line(errors) or "nothing happened for too long, or a process was killed"
    return f"the tests did not start: {reason}"


# What canonical solutions answered, of the rows judged last: the completions of a group are judged one by one.
_answers: dict[bytes, dict[str, Any]] = {}


def _row_key(tests: dict[str, Any], settings: CodeSettings) -> bytes:
    return hashlib.sha256(_as_text([tests, settings.memory_mb])).digest()


def _as_text(job: Any) -> bytes:
    try:
        return json.dumps(job).encode("ascii")
    except (TypeError, ValueError) as error:  # a column of the row holds, say, a date
        raise JudgeError(f"the row's tests cannot be sent to the sandbox: {error}") from None


def _remember(row: bytes, known: dict[str, Any]) -> None:
    _answers.setdefault(row, known)
    if len(_answers) > _REMEMBERED:
        del _answers[next(iter(_answers))]


def _wanted(tests: dict[str, Any]) -> set[str]:
    """Names that the tests may call, one of which a completion's code defines."""
    if tests["kind"] == "operations":
        return {names[0] for names, _, _ in tests["cases"]}
    if tests.get("name"):
        return {"Solution", *_IDENTIFIER.findall(tests["name"])[:1]}
    return set(_CALLED.findall(tests.get("code", "")))


def find_tests(prompt: Prompt) -> dict[str, Any]:
    """The row's tests as ``driver`` takes them. JudgeError where there are none or they are incomplete."""
    columns = prompt.columns
    name = columns.get("entry_point")
    if isinstance(columns.get("base_input"), list) and columns.get("canonical_solution"):
        return _evalplus(prompt)
    test = columns.get("test")
    if isinstance(test, str) and test.strip():
        has_check = "def check(" in test
        if has_check and not name:
            raise JudgeError(
                "the row's 'test' defines check(candidate), but no column 'entry_point' names the candidate"
            )
        return _code(prompt, "", f"{test}\ncheck({name})\n" if has_check else test)
    if columns.get("test_list"):
        setup = [*(columns.get("test_imports") or []), columns.get("test_setup_code") or ""]
        return _code(prompt, "\n".join(setup), "\n".join(columns["test_list"]))
    for value in (prompt.answer, *(columns.get(column) for column in PAIR_COLUMNS)):
        pairs = find_pairs(value, columns)
        if pairs is not None:
            if pairs["kind"] == "calls":
                check_signature(str(columns.get("starter_code") or prompt.content))
            return pairs
    raise JudgeError(
        "the row has no tests: expected 'test' and 'entry_point', 'test_list', 'base_input' and 'canonical_solution', "
        f"or inputs and outputs in the answer or {', '.join(PAIR_COLUMNS)}; it has {', '.join(columns) or 'no columns'}"
    )


def _evalplus(prompt: Prompt) -> dict[str, Any]:
    columns = prompt.columns
    if not columns.get("entry_point"):
        raise JudgeError("the row has 'base_input', and no column 'entry_point' names the function")
    return {
        "kind": "evalplus",
        "name": columns["entry_point"],
        "prompt": _prompt_source(prompt),
        "canonical": columns["canonical_solution"],
        "assertion": columns.get("assertion") or "",
        "base": columns["base_input"],
        "inputs": [*columns["base_input"], *(columns.get("plus_input") or [])],
        "atol": columns.get("atol") or 0.0,
    }


def _code(prompt: Prompt, setup: str, code: str) -> dict[str, Any]:
    name = prompt.columns.get("entry_point")
    source = _prompt_source(prompt) if name else ""
    says_class = re.search(r"\bclass(es)?\b", prompt.question) is not None
    return {"kind": "code", "name": name, "prompt": source, "setup": setup, "code": code, "says_class": says_class}


def _prompt_source(prompt: Prompt) -> str:
    """The row's own prompt, or what is fenced in it: code that completions may continue. It may be prose as well."""
    source = prompt.columns.get("prompt")
    return extract(source if isinstance(source, str) else prompt.question)


@contextlib.contextmanager
def _judging(job: dict[str, Any], settings: CodeSettings, errors: IO[bytes]) -> Iterator[int]:
    """Both sandboxes at work on ``job``; gives the descriptor of the driver's report. Their end is the block's."""
    mode = settings.sandbox
    longest_s = (
        START_LIMIT_S + settings.timeout_s + (2 * CANONICAL_LIMIT_S if job["tests"]["kind"] == "evalplus" else 0)
    )
    limits = sandbox.Limits(cpu_s=math.ceil(longest_s), memory_mb=settings.memory_mb)
    numpy = any("numpy" in job["tests"].get(part, "") for part in ("setup", "code"))
    with contextlib.ExitStack() as stack:
        report, report_to = _pipe(stack)
        requests, requests_to = _pipe(stack)
        answers, answers_to = _pipe(stack)
        task = stack.enter_context(tempfile.TemporaryFile())
        task.write(_as_text(job))
        task.seek(0)
        reach = [answers.fileno(), requests_to.fileno()]
        for start in (
            sandbox.start(mode, _CANDIDATE, limits, requests, answers_to, errors, numpy=numpy),
            sandbox.start(mode, _DRIVER, limits, task, report_to, errors, inherited=reach, numpy=numpy),
        ):
            stack.enter_context(start)
        for end in (report_to, requests, requests_to, answers, answers_to):
            end.close()  # so that each process sees the end of the other, and this one of the report
        yield report.fileno()


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """The end to read from and the end to write to."""
    read, write = os.pipe()
    return stack.enter_context(open(read, "rb", buffering=0)), stack.enter_context(open(write, "wb", buffering=0))


class _Report:
    """The driver's report, read line by line."""

    def __init__(self, descriptor: int, token: str) -> None:
        self._descriptor = descriptor
        self._token = token
        self._received = b""

    def line(self, limit_s: float) -> dict[str, Any]:
        """The next line; empty where it takes longer, is missing, too long, or not the driver's."""
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0.0))
            chunk = os.read(self._descriptor, _LONGEST_REPORT) if ready else b""
            if not chunk or len(self._received) > _LONGEST_REPORT:
                return {}
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        try:
            said = json.loads(line)
        except ValueError:
            return {}
        return said if isinstance(said, dict) and said.get("token") == self._token else {}
