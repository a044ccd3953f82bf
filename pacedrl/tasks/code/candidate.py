"""Runs a completion's code inside a sandbox: takes requests from a pipe and answers with plain data.

It shares its process with hostile code, so nothing that it sends is trusted.

The first message says what to run. Each later one is the standard input of one run of a program, or a request
``[operation, arguments, keywords]``, where the operation is a function of this file or of the modules ``operator`` and
``builtins``. Answers are ``["value", value]`` or ``["error", ...]``, followed by what ``describe`` gives.
If tests may use objects that are not plain data, these stay here, and references to them are sent.
"""

import builtins
import collections
import copy
import gc
import itertools
import operator
import os
import sys
from collections.abc import Callable
from typing import IO, Any

from pacedrl.tasks.code.implicit_imports import SYNTAX_TREE, compiled
from pacedrl.tasks.code.values import (
    LONGEST_MESSAGE,
    decode,
    describe,
    encode,
    is_iterable,
    rebuild,
    receive,
    send,
    send_items,
)


def main(seal: Callable[[], None]) -> None:
    """Serve standard input and output, which are the null device for the code that is run."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    send(answers, "ready")
    try:
        job = receive(requests)
    except EOFError:  # the tests cannot be used, so there is nothing to do
        return None
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    try:
        code = compiled(assemble(**job["code"]), "<completion>")
    except BaseException as error:  # whatever the compiler raises on malformed text
        return send(answers, ["error", *describe(error)])
    if job["serves"] == "runs":
        return _serve_runs(code, requests, answers, seal)
    seal()
    return _serve_requests(code, requests, answers, keeps_objects=job["serves"] == "objects")


def assemble(text: str, prompt: str, entry_point: str | None) -> str:
    """Make a program of ``text``: as it stands, placed after ``prompt``, or as the body that ``prompt`` lacks.

    ``prompt`` is source that ends in the head of ``entry_point``, or prose, or empty. Text that defines ``entry_point``
    (or a class ``Solution``) comes after the prompt, whose imports and helpers it may use. Other text continues the
    prompt: all of it, or all of it indented, or what comes before its first line that is not indented.
    """
    if entry_point is None or _defines(text, entry_point):
        return f"{closed(prompt)}\n{text}"
    lines = text.splitlines()
    end = next((n for n, line in enumerate(lines) if line.strip() and not line[0].isspace()), len(lines))
    for body in (text, "\n".join(f"    {line}" for line in lines), "\n".join(lines[:end])):
        if body.strip() and _compiles(f"{prompt}\n{body}"):
            return f"{prompt}\n{body}"
    return text


def closed(prompt: str) -> str:
    """Return the prompt as a program, with a body for its last function if that lacks one; nothing for prose."""
    return next((source for source in (prompt, f"{prompt}\n    pass\n") if _compiles(source)), "")


def _defines(text: str, name: str) -> bool:
    """Tell whether the text defines or assigns ``name``, or ``Solution``."""
    try:
        statements = compile(text, "<completion>", "exec", SYNTAX_TREE, dont_inherit=True).body
    except (SyntaxError, ValueError):
        return False
    targets = [target for statement in statements for target in getattr(statement, "targets", ())]
    named = {getattr(statement, "name", None) for statement in statements}
    return not named.union(getattr(target, "id", None) for target in targets).isdisjoint({name, "Solution"})


def _compiles(text: str) -> bool:
    try:
        compile(text, "<completion>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):  # ValueError for null bytes
        return False
    return True


def _serve_requests(code: Any, requests: IO[bytes], answers: IO[bytes], keeps_objects: bool) -> None:
    module = type(sys)("completion")
    sys.modules["completion"] = module  # dataclasses look their module up
    try:
        exec(code, module.__dict__)
    except BaseException as error:
        if not (isinstance(error, SystemExit) and error.code in (None, 0)):  # exit() ends a script without failure
            return send(answers, ["error", *describe(error)])
    send(answers, ["value", None])
    objects = KeptObjects(module)
    own: dict[str, Callable[..., Any]] = {
        "find": objects.find,
        "take": lambda iterator, count: list(itertools.islice(iterator, count)),
        "awaited": _awaited,
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }
    while True:
        operation, arguments, keywords = receive(requests)
        try:
            function = own.get(operation) or getattr(operator, operation, None) or getattr(builtins, operation)
            value = function(*decode(arguments, objects.receive), **decode(keywords, objects.receive))
            answer = ["value", encode(value, objects.send if keeps_objects else send_items)]
        except BaseException as error:  # also SystemExit
            answer = ["error", *describe(error)]
        send(answers, answer)


def _awaited(coroutine: Any) -> Any:
    import asyncio

    return asyncio.run(coroutine)


class KeptObjects:
    """The values that stay here: objects that the tests refer to by index, and the module's functions, by name."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kept: list[Any] = []
        self._places: dict[int, int] = {}  # the index in that list, by an object's id

    def find(self, name: str) -> Any:
        """Return a function of the module, or a method of LeetCode's class ``Solution``."""
        namespace = vars(self._module)
        return namespace[name] if name in namespace else getattr(namespace["Solution"](), name)

    def send(self, value: Any) -> Any:
        """Encode other values: iterables except iterators as items, exceptions described, all else as references."""
        if isinstance(value, collections.deque):
            return {"deque": send_items(value)}
        if isinstance(value, BaseException):
            return {"error": describe(value)}
        if is_iterable(value) and not hasattr(value, "__next__"):
            return {"items": send_items(value)}
        place = self._places.setdefault(id(value), len(self._kept))
        if place == len(self._kept):
            self._kept.append(value)
        tag = "coroutine" if hasattr(type(value), "__await__") else "iterator" if is_iterable(value) else "object"
        return {tag: place}

    def receive(self, tag: str, content: Any) -> Any:
        """Return the value of a name, of a reference that ``send`` gave, of items (an iterator), and the like."""
        match tag:
            case "name":
                return self.find(content)
            case "object":
                return self._kept[content]
            case "items":
                return iter(decode(content))
            case "deque":
                return collections.deque(decode(content))
            case "error":
                return rebuild({}, *content)
        return range(*content)


def _serve_runs(code: Any, requests: IO[bytes], answers: IO[bytes], seal: Callable[[], None]) -> None:
    """Fork a process for each run, so that Python need not start again."""
    gc.freeze()  # so that no child's garbage collection goes through what exists by now
    send(answers, ["value", None])
    while True:
        text = receive(requests)
        output, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            os.close(output)
            return _run(code, text, theirs, seal)
        os.close(theirs)
        with os.fdopen(output, "rb") as file:
            printed = file.read(LONGEST_MESSAGE // 8)  # in JSON a byte may take six
            complete = not file.read(1)
        if complete and os.waitpid(child, 0)[1] == 0:
            send(answers, ["value", printed.decode("utf-8", "replace")])
        else:
            return send(answers, ["error", ["Exception"], "it failed" if complete else "too much output"])


def _run(code: Any, text: str, output: int, seal: Callable[[], None]) -> None:
    """Become the program. The caller must return at once, so that the process ends as a script does.

    Its other threads end first, ``atexit`` functions run, and output is written; the exit code is that of a script.
    """
    with open("input", "w+b", buffering=0) as file:  # in the sandbox's empty /tmp
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    os.dup2(output, 1)
    os.close(output)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    for name in ("stdin", "stdout"):
        setattr(sys, f"__{name}__", getattr(sys, name))
        if hasattr(builtins, name):  # the program uses it without an import
            setattr(builtins, name, getattr(sys, name))
    seal()
    exec(code, module.__dict__)
