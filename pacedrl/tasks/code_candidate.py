"""Runs a completion's code inside a sandbox: takes calls from a pipe, answers with plain data.

This file is shown to the sandbox alone, without the rest of the package, so it imports the standard library only, and
little of it. It shares its process with hostile code: nothing that it sends is trusted. What makes a verdict safe
is that whoever reads it (``code_driver``) builds values of built-in types and nothing else out of what arrives.

A message is a line of JSON. The first one says what to run; each further one is a call ``[name, arguments, keywords]``
or, for a program, the standard input of one run. Answers are ``["value", value]``, ``["error", exception types,
message]`` or ``["output", text]``.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any

LONGEST_MESSAGE = 16 << 20
"""Bytes of a line. A longer answer is a failure; so is printing more than an eighth of it in a run."""

_SMALL = 1 << 63  # larger integers are sent in hexadecimal, which takes time proportional to their length
_SYNTAX_TREE = 0x400  # ast.PyCF_ONLY_AST, without the import
_SCALARS = {str, int, float, bool, type(None)}


class NotPlainDataError(TypeError):
    """A value that is not made of built-in types alone."""


def encode(value: Any) -> Any:
    """``value`` as JSON: strings, numbers, None and lists as they are, all else as ``{tag: ...}``.

    Subclasses are sent as the built-in type they extend, a match of a regular expression as True. NotPlainDataError
    names a type that cannot be sent; RecursionError where it is nested too deeply.
    """
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value) if -_SMALL < value < _SMALL else {"int": format(int(value), "x")}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return list(value) if _is_json(value) else [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    for tag, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset), ("deque", collections.deque)):
        if isinstance(value, kind):
            return {tag: encode(list(value))}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if (type(value).__module__, type(value).__name__) == ("re", "Match"):  # MBPP's tests take it for a truth value
        return True
    raise NotPlainDataError(f"a {type(value).__name__} is no plain data")


def _is_json(items: list[Any]) -> bool:
    """Whether JSON says them as they are: most lists that are long hold numbers or strings."""
    kinds = set(map(type, items))
    return kinds <= _SCALARS and (
        int not in kinds or all(-_SMALL < item < _SMALL for item in items if type(item) is int)
    )


_BUILD: dict[str, Callable[[Any], Any]] = {
    "int": lambda digits: int(digits, 16),
    "dict": lambda items: {decode(key): decode(item) for key, item in items},
    "tuple": lambda items: tuple(decode(items)),
    "set": lambda items: set(decode(items)),
    "frozenset": lambda items: frozenset(decode(items)),
    "deque": lambda items: collections.deque(decode(items)),
    "complex": lambda parts: complex(*parts),
    "bytes": bytes.fromhex,
}


def decode(message: Any) -> Any:
    """What ``encode`` made ``message`` of, new at every call. Any exception, where it was not made by ``encode``."""
    if isinstance(message, list):
        return message[:] if set(map(type, message)) <= _SCALARS else [decode(item) for item in message]
    if isinstance(message, dict):
        ((tag, content),) = message.items()
        return _BUILD[tag](content)
    return message


def send(file: IO[bytes], message: Any) -> None:
    """Write one message. OSError where nobody reads."""
    file.write(json.dumps(message).encode("ascii") + b"\n")
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Read one message. EOFError at the end and where it is too long, ValueError where it is no JSON."""
    line = file.readline(LONGEST_MESSAGE)
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)


def main(seal: Callable[[], None]) -> None:
    """Serve standard input and output; they are the null device to the code that is run."""
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
        code = compile(assemble(**job["code"]), "<completion>", "exec", dont_inherit=True)
    except BaseException as error:  # whatever the compiler raises on malformed text
        return send(answers, _described(error))
    if job["program"]:
        return _serve_runs(code, requests, answers, seal)
    seal()
    return _serve_calls(code, requests, answers)


def assemble(text: str, prompt: str, entry_point: str | None) -> str:
    """The program that ``text`` makes: as it stands, behind ``prompt``, or as the body that ``prompt`` lacks.

    ``prompt`` is source that ends in the head of ``entry_point``, or prose, or empty. Text that defines ``entry_point``
    (or a class ``Solution``) is put behind the prompt, whose imports and helpers it may use. Other text continues the
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
    """The prompt as a program: its last function may lack a body; nothing where it is prose."""
    return next((source for source in (prompt, f"{prompt}\n    pass\n") if _compiles(source)), "")


def _defines(text: str, name: str) -> bool:
    """Whether the text defines or assigns ``name``, or ``Solution``."""
    try:
        statements = compile(text, "<completion>", "exec", _SYNTAX_TREE, dont_inherit=True).body
    except (SyntaxError, ValueError):
        return False
    targets = [target for statement in statements for target in getattr(statement, "targets", ())]
    named = {getattr(statement, "name", None) for statement in statements}
    return not named.union(getattr(target, "id", None) for target in targets).isdisjoint({name, "Solution"})


def _compiles(text: str) -> bool:
    try:
        compile(text, "<completion>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):  # the latter for null bytes
        return False
    return True


def _serve_calls(code: Any, requests: IO[bytes], answers: IO[bytes]) -> None:
    module = type(sys)("completion")
    sys.modules["completion"] = module  # dataclasses look their module up
    try:
        exec(code, module.__dict__)
    except BaseException as error:  # SystemExit too
        return send(answers, _described(error))
    send(answers, ["value", None])
    while True:
        name, arguments, keywords = receive(requests)
        try:
            value = _find(module, name)(*decode(arguments), **decode(keywords))
            answer = ["value", encode(value)]
        except BaseException as error:  # as above
            answer = _described(error)
        send(answers, answer)


def _find(module: Any, name: str) -> Any:
    """A function of the module, or a method of the class ``Solution`` that LeetCode's problems ask for."""
    namespace = vars(module)
    return namespace[name] if name in namespace else getattr(namespace["Solution"](), name)


def _described(error: BaseException) -> list[Any]:
    return ["error", [kind.__name__ for kind in type(error).__mro__], str(error)[:1000]]


def _serve_runs(code: Any, requests: IO[bytes], answers: IO[bytes], seal: Callable[[], None]) -> None:
    """A process for each run, forked so that Python need not start again."""
    send(answers, ["value", None])
    while True:
        text = receive(requests)
        output, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            requests.close()
            answers.close()
            os.close(output)
            _run(code, text, theirs, seal)
        os.close(theirs)
        with os.fdopen(output, "rb") as file:
            printed = file.read(LONGEST_MESSAGE // 8)  # in JSON a byte may take six
            complete = not file.read(1)
        if complete and os.waitpid(child, 0)[1] == 0:
            send(answers, ["output", printed.decode("utf-8", "replace")])
        else:
            return send(answers, ["error", ["Exception"], "too much output" if not complete else "it failed"])


def _run(code: Any, text: str, output: int, seal: Callable[[], None]) -> None:
    """Become the program: never returns. Its exit code is 0 where it ended by itself or by ``sys.exit(0)``."""
    with open("input", "w+b", buffering=0) as file:  # in the sandbox's empty /tmp
        file.write(text.encode("utf-8", "surrogatepass"))
        file.seek(0)
        os.dup2(file.fileno(), 0)
    os.dup2(output, 1)
    os.close(output)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8"), os.fdopen(1, "w", encoding="utf-8")
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    seal()
    status = 1
    try:
        exec(code, module.__dict__)
        status = 0
    except SystemExit as error:
        status = 0 if error.code in (None, 0) else 1
    except BaseException:  # the program failed
        pass
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)
