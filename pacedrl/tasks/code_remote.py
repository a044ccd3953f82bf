"""The candidate, as tests see it: its functions are called through pipes, and its objects stay where they are.

This file is shown to the sandbox of the tests (see ``code_driver``). What the candidate says is trusted in nothing. A
result is plain data, built here, wherever it can be; an object that is none is never equal to plain data, whatever its
class says, so a test that expects a value cannot be met by anything but that value.
"""

from __future__ import annotations

import builtins
import collections
import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any

from pacedrl.tasks.code_values import (
    NotPlainDataError,
    decode,
    encode,
    is_iterable,
    receive,
    receive_none,
    send,
    send_items,
)

_CANNOT = "and only plain data can be sent to it or come from it"

Ask = Callable[..., Any]
"""``ask(operation, *arguments, **keywords)``: what the candidate's operation gives, or raises."""

_PLAIN_ATTRIBUTES = frozenset(
    name for kind in (str, bytes, int, float, complex, list, tuple, dict, set, frozenset) for name in dir(kind)
)
# Operators that an object of a class under test has: functions of the modules operator and builtins.
_COMPARISONS = ("lt", "le", "gt", "ge")
_OPERATORS = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
)
_CONVERSIONS = ("str", "repr", "format", "bytes", "bool", "hash", "int", "float", "index")
_OTHERS = (
    "len",
    "abs",
    "round",
    "neg",
    "pos",
    "invert",
    "divmod",
    "reversed",
    "contains",
    "getitem",
    "setitem",
    "delitem",
)


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
        self.has_classes = False
        """Whether the tests are of classes, whose objects support operators, then."""
        self.exceptions: dict[str, type[Exception]] = {}
        """The tests' own classes for exceptions that the candidate defines, by name."""
        self._objects: dict[int, Remote] = {}

    def await_ready(self) -> None:
        """Wait for the process. UnusableError when it ended before it ran anything of the completion's."""
        try:
            ready = receive(self._answers) == "ready"
        except (EOFError, ValueError):
            ready = False
        if not ready:
            raise UnusableError("the candidate's sandbox did not start")

    def load(self, code: dict[str, Any], serves: str) -> None:
        """Run its definitions; any exception when they fail. See ``code_candidate`` for what it ``serves``."""
        self._exchange({"code": code, "serves": serves})

    def call(self, name: str, /, *arguments: Any, **keywords: Any) -> Any:
        """What its function returns, or the exception it raises, as the nearest built-in one."""
        return self.ask("call", Remote(self.ask, {"name": name}), *arguments, **keywords)

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
            raised = self._exception(*content) if kind == "error" else None
            value = None if raised else decode(content[0], self._received)
        except BaseException:  # its end, garbage, too long, too deep, too large: all its own doing
            self.lost = True
            raise CandidateLostError from None
        if raised:
            raise raised
        return value

    def _exception(self, types: list[str], message: str) -> Exception:
        """The first of ``types`` that can be had. None of them ends an iteration of the tests, or the driver."""
        for name in types:
            kind = self.exceptions.get(name, getattr(builtins, name, None))
            if isinstance(kind, type) and issubclass(kind, Exception) and "Iteration" not in name:
                try:
                    return kind(str(message))
                except TypeError:  # it needs more than a message; its base class may not
                    continue
        return Exception(str(message))

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
                return self._exception(*content)
            case "object":
                return self._object(int(content))
        return receive_none(tag, content)

    async def _coroutine(self, content: int) -> Any:
        return self.ask("awaited", self._object(content))

    def _object(self, place: int) -> Remote:
        """One object here for each one there."""
        kind = RemoteInstance if self.has_classes else Remote
        return self._objects.setdefault(place, kind(self.ask, {"object": place}))


def _send_argument(value: Any) -> Any:
    if isinstance(value, Remote | RemoteIterator):
        return value._reference
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    items = send_items(value)
    if isinstance(value, collections.deque):
        return {"deque": items}
    return {"items": items} if hasattr(value, "__next__") else items


def _items_of(value: Any) -> list[Any] | None:
    """The items of a list or of an iterable that is judged as one; None for anything else."""
    is_list = isinstance(value, list | collections.deque) or (is_iterable(value) and not hasattr(value, "__next__"))
    return None if isinstance(value, str | bytes | tuple | dict | set | frozenset) or not is_list else list(value)


class Items(list[Any]):
    """The items of a range, view or the like: equal to whatever has these items in this order, and to such a set."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, set | frozenset):
            return len(self) == len(other) and set(self) == other
        items = _items_of(other)
        return items is not None and list(self) == items

    __hash__ = None


class Deque(collections.deque[Any]):
    """A deque, which a list with the same items is equal to."""

    def __eq__(self, other: object) -> bool:
        items = _items_of(other)
        return items is not None and list(self) == items

    __hash__ = None


class RemoteIterator:
    """An iterator of the candidate's, which may have no end. It is equal to a list of the items that it has left.

    Going through it takes nothing away from it, only ``next`` does: a check of every item is not met by there being
    none left.
    """

    def __init__(self, ask: Ask, reference: dict[str, Any]) -> None:
        self._ask = ask
        self._reference = reference
        self._items: list[Any] = []
        self._place = 0  # of the next item
        self._ended = False

    def _has(self, place: int) -> bool:
        while place >= len(self._items) and not self._ended:
            count = min(max(1, len(self._items)), 1000)  # a message for each item would take long
            items = self._ask("take", self, count)
            self._items += items
            self._ended = len(items) < count
        return place < len(self._items)

    def __iter__(self) -> Iterator[Any]:
        place = self._place
        while self._has(place):
            yield self._items[place]
            place += 1

    def __next__(self) -> Any:
        if not self._has(self._place):
            raise StopIteration
        self._place += 1
        return self._items[self._place - 1]

    def __eq__(self, other: object) -> bool:
        items = _items_of(other)
        return items is not None and list(itertools.islice(iter(self), len(items) + 1)) == items

    __hash__ = None  # type: ignore[assignment]


class Remote:
    """An object of the candidate's that is no plain data, such as a function that it returned.

    It can be called, has items if its class gives it some, and attributes, but none that plain data have, too: where a
    test expects a list, an object must not do, which might give another answer each time it is looked at.
    """

    def __init__(self, ask: Ask, reference: dict[str, Any]) -> None:
        object.__setattr__(self, "_ask", ask)
        object.__setattr__(self, "_reference", reference)
        object.__setattr__(self, "_iterator", None)

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name in _PLAIN_ATTRIBUTES:
            raise AttributeError(name)
        return self._ask("getattr", self, name)

    def __iter__(self) -> Iterator[Any]:
        """Its items, the same ones each time."""
        if self._iterator is None:
            object.__setattr__(self, "_iterator", self._new_iterator())
        return iter(self._iterator)

    def __enter__(self) -> Any:
        return self._ask("getattr", self, "__enter__")()

    def __exit__(self, *error: Any) -> Any:
        return self._ask("getattr", self, "__exit__")(*(None if part is None else str(part) for part in error))

    def _new_iterator(self) -> RemoteIterator:
        return RemoteIterator(self._ask, self._ask("iter", self)._reference)

    def __eq__(self, other: object) -> bool:
        """Compare with another object of the candidate, by its own class. It never equals plain data."""
        if isinstance(other, Remote):
            return self._ask("eq", self, other) is True
        try:
            encode(other, _send_argument)
        except NotPlainDataError as error:
            message = f"the row's tests compare a result with a value of type {error}, {_CANNOT}"
            raise UnusableError(message) from None
        return False

    __hash__ = object.__hash__


class RemoteInstance(Remote):
    """An object of the candidate's where the tests are of a class: it has operators and every attribute, too.

    Only two objects of the candidate's are compared by their class. With plain data it has no order.
    """

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", self, name)

    def __copy__(self) -> Any:
        return self._ask("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._ask("deepcopy", self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._new_iterator())

    def __next__(self) -> Any:
        items = self._ask("take", self, 1)
        if not items:
            raise StopIteration
        return items[0]

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._ask("isinstance", value, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Remote) and self._ask("issubclass", kind, self) is True


def _forwarded(operation: str, swapped: bool = False) -> Callable[..., Any]:
    def forward(self: RemoteInstance, *arguments: Any) -> Any:
        if operation in _COMPARISONS and not isinstance(arguments[0], Remote):
            return NotImplemented
        return self._ask(operation, *arguments, self) if swapped else self._ask(operation, self, *arguments)

    return forward


for _name in (*_COMPARISONS, *_OPERATORS, *_CONVERSIONS, *_OTHERS):
    setattr(RemoteInstance, f"__{_name.rstrip('_')}__", _forwarded(_name))
for _name in _OPERATORS:
    setattr(RemoteInstance, f"__r{_name.rstrip('_')}__", _forwarded(_name, swapped=True))
    setattr(RemoteInstance, f"__i{_name.rstrip('_')}__", _forwarded(f"i{_name.rstrip('_')}"))
