"""The candidate, as tests see it: its functions are called through pipes, and its objects stay where they are.

This file is shown to the sandbox of the tests (see ``driver``). What the candidate says is trusted in nothing. A
result is plain data, built here, wherever it can be; what is none is one of the classes of ``objects``, so a test
that expects a value cannot be met by anything but that value.
"""

from __future__ import annotations

import collections
from typing import IO, Any, NoReturn

from pacedrl.tasks.code.objects import Deque, Items, Made, NamedClass, Remote, RemoteIterator
from pacedrl.tasks.code.values import (
    Exceptions,
    NotPlainDataError,
    decode,
    describe,
    encode,
    rebuild,
    receive,
    receive_none,
    send,
    send_items,
)

_CANNOT = "and only plain data can be sent to it or come from it"


class UnusableError(BaseException):
    """The row's tests cannot judge anything. No ``Exception``: tests must not catch it."""


class CandidateLostError(BaseException):
    """The candidate ended or broke the protocol. No ``Exception``, as above."""


class Candidate:
    """The candidate's process."""

    def __init__(self, answers: IO[bytes], requests: IO[bytes]) -> None:
        self._answers = answers
        self._requests = requests
        self.asked = False
        """Whether anything was asked of it."""
        self.lost = False
        """Whether it broke the protocol."""
        self.objects_used = False
        """Whether the tests are known to be of a class: they do with an object what nobody does with plain data."""
        self.methods_used: set[str] = set()
        """Names of attributes that the tests read of objects that they made."""
        self.exceptions: Exceptions = {}
        """The tests' own classes for exceptions that the candidate defines, by name."""
        self._like_plain_data = False
        self._objects: dict[tuple[type[Remote], int], Remote] = {}

    def await_ready(self) -> None:
        """Wait for the process. UnusableError when it ended before it ran anything of the completion's."""
        try:
            ready = receive(self._answers) == "ready"
        except (EOFError, ValueError):
            ready = False
        if not ready:
            raise UnusableError("the candidate's sandbox did not start")

    def load(self, code: dict[str, Any], serves: str) -> None:
        """Run its definitions; any exception when they fail. See ``candidate`` for what it ``serves``."""
        self._exchange({"code": code, "serves": serves})

    def call(self, name: str, /, *arguments: Any, **keywords: Any) -> Any:
        """What its function returns, or the exception it raises, as the nearest built-in one."""
        return self.ask("call", Remote(self, {"name": name}), *arguments, **keywords)

    def ask(self, operation: str, /, *arguments: Any, **keywords: Any) -> Any:
        """The result of an operation in the candidate's sandbox; it raises what the candidate raises, as above.

        Raises UnusableError for arguments that cannot be sent.
        """
        self.asked = True
        try:
            request = [operation, encode(list(arguments), _send_argument), encode(keywords, _send_argument)]
        except NotPlainDataError as error:
            raise UnusableError(f"the row's tests pass the code a value of type {error}, {_CANNOT}") from None
        return self._exchange(request)

    def named_class(self, name: str) -> Any:
        """Its class (or whatever it has) of that name."""
        return self.made(self.ask("find", name), NamedClass)

    def made(self, value: Any, kind: type[Remote] = Made) -> Any:
        """``value``, as an object that the tests made, if it is an object."""
        return self._object(value._reference["object"], kind) if isinstance(value, Remote) else value

    def fail(self) -> NoReturn:
        """Make the verdict 0, whatever the tests do next: an object was used where a value is expected."""
        self.lost = True
        raise CandidateLostError

    def saw_operator(self, on_plain_data: bool, between_objects: bool = False) -> None:
        """Remember that an object that the tests made met an operator, or a method that plain data have."""
        self._like_plain_data |= on_plain_data
        self.objects_used |= between_objects

    @property
    def may_pass(self) -> bool:
        """Whether nothing spoke against it. A name with a capital letter may be that of a function, after all."""
        return not self.lost and (self.objects_used or not self._like_plain_data)

    def check_comparable(self, value: object) -> None:
        """Raise UnusableError where nothing that the candidate can send equals ``value``."""
        try:
            encode(value, _send_argument)
        except NotPlainDataError as error:
            message = f"the row's tests compare a result with a value of type {error}, {_CANNOT}"
            raise UnusableError(message) from None

    def run(self, text: str) -> str:
        """What its program prints, given ``text`` on standard input; an exception when it fails."""
        self.asked = True
        output = self._exchange(text)
        if type(output) is not str:
            raise ValueError
        return output

    def _exchange(self, request: Any) -> Any:
        if self.lost:
            raise CandidateLostError
        try:
            send(self._requests, request)
            kind, *content = receive(self._answers)
            raised = rebuild(self.exceptions, *content) if kind == "error" else None
            value = None if raised else decode(content[0], self._received)
        except BaseException:  # its end, garbage, too long, too deep, too large: all its own doing
            self.lost = True
            raise CandidateLostError from None
        if raised:
            raise raised
        return value

    def _received(self, tag: str, content: Any) -> Any:
        match tag:
            case "items":
                return Items(decode(content))
            case "deque":
                return Deque(decode(content))
            case "iterator":
                return RemoteIterator(self.ask, {"object": int(content)})
            case "coroutine":
                return self._coroutine(content)
            case "error":
                return rebuild(self.exceptions, *content)
            case "object":
                return self._object(int(content))
        return receive_none(tag, content)

    async def _coroutine(self, content: int) -> Any:
        return self.ask("awaited", self._object(content))

    def _object(self, place: int, kind: type[Remote] = Remote) -> Remote:
        """One object of a ``kind`` here for each one there."""
        return self._objects.setdefault((kind, place), kind(self, {"object": place}))


def _send_argument(value: Any) -> Any:
    """What is sent for an argument that is no plain data. NotPlainDataError, for what only the tests can have made."""
    if isinstance(value, Remote | RemoteIterator):
        return value._reference
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, BaseException):
        return {"error": describe(value)}
    if getattr(value, "cr_code", None) is Candidate._coroutine.__code__:
        raise TypeError("a coroutine of the candidate's was passed on before it was awaited")
    items = send_items(value, _send_argument)
    if isinstance(value, collections.deque):
        return {"deque": items}
    return {"items": items} if hasattr(value, "__next__") else items
