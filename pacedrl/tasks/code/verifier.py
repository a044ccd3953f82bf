"""Judges Python code by a row's tests. The code is hostile: only passing the tests earns a reward.

A row's columns tell which of four kinds of tests it has, tried in this order:

- EvalPlus: ``base_input``, ``plus_input``, ``canonical_solution``, ``entry_point``, ``atol``;
- HumanEval: ``test``, which defines ``check(candidate)``, and ``entry_point``; or any other test code in ``test``;
- MBPP: ``test_list``, assertions, with ``test_imports`` and ``test_setup_code``;
- pairs of inputs and outputs, in the answer or one of the columns in ``PAIR_COLUMNS``, also as a JSON string:
  ``{"inputs": [...], "outputs": [...]}`` of a program, or of the function or class ``fn_name``; or a list of
  ``{"input": ..., "output": ...}``. See ``pairs``.

Two sandboxes are started for every completion. One runs the completion's code, which knows nothing of the tests; the
other runs the tests, which reach that code through pipes, in plain data. See ``candidate`` and ``driver``.
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
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import driver, sandbox
from pacedrl.tasks.code.blocks import extract
from pacedrl.tasks.code.pairs import check_signature, find_pairs
from pacedrl.tasks.code.sandbox import Mode
from pacedrl.types import Prompt

PAIR_COLUMNS = ("input_output", "test_cases", "tests", "ground_truth", "verification_info")

START_LIMIT_S = 5.0
"""Seconds in which the tests must be read and both sandboxes started; beyond that, the verdict is an error."""
CANONICAL_LIMIT_S = 60.0
"""Additional seconds that an EvalPlus row's canonical solution may take on all inputs; beyond that, an error."""
CANONICAL_FACTOR = 4.0
"""A completion may take this many times as long as the canonical solution, if that is more than ``timeout_s``."""

_LONGEST_REPORT = 2 * driver.LONGEST_KNOWN  # bytes
_REMEMBERED = 256  # rows
_FOLDER = Path(__file__).parent
# The files of either sandbox: they import one another and the standard library only.
_CANDIDATE_FILES = [_FOLDER / f"{name}.py" for name in ("candidate", "implicit_imports", "values")]
_DRIVER_NAMES = ("driver", "candidate_process", "compare", "evalplus", "proxies")
_DRIVER_FILES = [*(_FOLDER / f"{name}.py" for name in _DRIVER_NAMES), *_CANDIDATE_FILES]


@dataclass(frozen=True)
class CodeSettings:
    """Settings of the sandboxes that run a completion's code."""

    sandbox: Mode = "bubblewrap"
    """See ``pacedrl.tasks.code.sandbox``."""
    timeout_s: float = 4.0
    """Wall-clock seconds for all tests of a completion; beyond that, the reward is 0. If an EvalPlus row's canonical
    solution needs more than a quarter of that, the limit is four times what it needs, as in EvalPlus, but at most
    ``CANONICAL_LIMIT_S``. A verdict may take ``START_LIMIT_S`` more, and the canonical solution's time."""
    memory_mb: int = 1024
    """Address space in MiB of each process; the completion may start a few."""


def code_reward(prompt: Prompt, text: str, settings: CodeSettings) -> float:
    """Return 1.0 if the code in ``text`` passes all tests of the row in time, else 0.0.

    Call ``sandbox.check`` first. Raises JudgeError if the row has no tests, they do not work, or the sandboxes do not
    start. Once the code runs, it is responsible for whatever happens.
    """
    tests = find_tests(prompt)
    name = prompt.columns.get("entry_point")
    code = {
        "text": extract(text, _wanted(tests)),
        "prompt": _prompt_source(prompt) if name else "",
        "entry_point": name,
    }
    row = hashlib.sha256(_as_text([tests, settings.memory_mb])).digest() if tests["kind"] == "evalplus" else None
    known = _answers.get(row) if row else None
    start_limit_s = START_LIMIT_S + (CANONICAL_LIMIT_S if row and known is None else 0.0)
    job = {"token": secrets.token_hex(16), "code": code, "tests": tests | ({"known": known} if known else {})}
    with tempfile.TemporaryFile() as errors, _judging(job, settings, errors) as report:
        first = report.line(start_limit_s)
        if "started" not in first:
            reason = sandbox.last_line(errors) or "nothing happened for too long, or a process was killed"
            raise JudgeError(first.get("unusable") or f"the tests did not start: {reason}")
        if row and first["known"]:
            _answers.setdefault(row, first["known"])
            if len(_answers) > _REMEMBERED:
                del _answers[next(iter(_answers))]
        last = report.line(max(settings.timeout_s, min(CANONICAL_FACTOR * first["started"], CANONICAL_LIMIT_S)))
        if "unusable" in last:
            raise JudgeError(last["unusable"])
        return float(last.get("passed") is True)


_answers: dict[bytes, dict[str, Any]] = {}
"""Canonical solutions' answers for the rows judged last, because the completions of a group are judged one by one."""


def _as_text(job: Any) -> bytes:
    try:
        return json.dumps(job).encode("ascii")
    except (TypeError, ValueError) as error:  # a column of the row holds, say, a date
        raise JudgeError(f"the row's tests cannot be sent to the sandbox: {error}") from None


def _wanted(tests: dict[str, Any]) -> set[str]:
    """Return names that the tests may call; the completion's code defines one of them."""
    if tests["kind"] == "operations":
        return {names[0] for names, _, _ in tests["cases"]}
    if tests.get("name"):
        return {"Solution", *re.findall(r"\w+", tests["name"])[:1]}
    return set(re.findall(r"(\w+)\s*\(", tests.get("code", "")))


def find_tests(prompt: Prompt) -> dict[str, Any]:
    """Return the row's tests as ``driver`` takes them. Raises JudgeError if there are none or they are incomplete."""
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
    """Return the row's own prompt, or what is fenced in it: code that completions may continue, or prose."""
    source = prompt.columns.get("prompt")
    return extract(source if isinstance(source, str) else prompt.question)


@contextlib.contextmanager
def _judging(job: dict[str, Any], settings: CodeSettings, errors: IO[bytes]) -> Iterator[_ReportReader]:
    """Run both sandboxes on ``job`` until the block ends; give the driver's report."""
    mode = settings.sandbox
    canonical_s = 2 * CANONICAL_LIMIT_S if job["tests"]["kind"] == "evalplus" else 0
    cpu_s = math.ceil(START_LIMIT_S + settings.timeout_s + canonical_s)
    limits = sandbox.Limits(cpu_s=cpu_s, memory_mb=settings.memory_mb)
    numpy = any("numpy" in job["tests"].get(part, "") for part in ("setup", "code"))
    with contextlib.ExitStack() as stack:
        task = stack.enter_context(tempfile.TemporaryFile())
        task.write(_as_text(job))
        task.seek(0)
        start = partial(sandbox.start, mode, limits=limits, stdout=subprocess.PIPE, stderr=errors, numpy=numpy)
        candidate = stack.enter_context(start(_CANDIDATE_FILES, stdin=subprocess.PIPE))
        assert candidate.stdin
        assert candidate.stdout
        reach = [candidate.stdout.fileno(), candidate.stdin.fileno()]
        tests = stack.enter_context(start(_DRIVER_FILES, stdin=task, inherited=reach))
        assert tests.stdout
        candidate.stdin.close()  # so that the candidate and the driver notice each other's end
        candidate.stdout.close()
        yield _ReportReader(tests.stdout.fileno(), job["token"])


class _ReportReader:
    def __init__(self, descriptor: int, token: str) -> None:
        self._descriptor = descriptor
        self._token = token
        self._received = b""

    def line(self, limit_s: float) -> dict[str, Any]:
        """Return the next line; nothing if it takes longer, is missing or too long, or is not the driver's."""
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
