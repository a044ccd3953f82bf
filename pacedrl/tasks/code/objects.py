"""Objects of the candidate's, as tests see them: lists of items, iterators, and references to what is no plain data.

This file is shown to the sandbox of the tests (see ``driver``). An object that is no plain data never equals plain
data, and operators, and methods that plain data have, work between the two only on objects that the tests themselves
made by calling a class by its name, or that operators on such objects gave; on any other object of the candidate's,
such as one that a function returned where a number is expected, they make the verdict 0.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pacedrl.tasks.code.values import is_iterable

if TYPE_CHECKING:
    from pacedrl.tasks.code.remote import Candidate

Ask = Callable[..., Any]
"""``ask(operation, *arguments, **keywords)``: what the candidate's operation gives, or raises."""

_PLAIN_ATTRIBUTES = frozenset(
    name for kind in (str, bytes, int, float, complex, list, tuple, dict, set, frozenset) for name in dir(kind)
)
_DESCRIPTIONS = frozenset(
    f"__{name}__" for name in ("name", "qualname", "wrapped", "members", "annotations", "bases", "mro", "slots")
)
"""What tests may read of names with two underscores. Others make libraries treat an object as one of their own."""

# Operators, by their names in the modules operator and builtins.
_COMPARISONS = ("lt", "le", "gt", "ge")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_UNARY = ("neg", "pos", "invert")
_GIVE_VALUES = ("abs", "round", "divmod", "index")
_CONVERSIONS = ("str", "repr", "format", "bytes", "hash", "int", "float")
_OF_CONTAINERS = ("len", "bool", "reversed")
_WITH_KEYS = ("contains", "getitem", "setitem", "delitem")
_GIVE_OBJECTS = frozenset([*_BINARY, *(f"i{name.rstrip('_')}" for name in _BINARY), *_UNARY])
_ORDERS = frozenset(["eq", *_COMPARISONS])


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

    It can be called, and has attributes, conversions such as ``str``, and the items that it gave when they were first
    looked at: a value would not give others the next time. Operators may combine it with other objects of the
    candidate's, if what they give is an object again.
    """

    def __init__(self, candidate: Candidate, reference: dict[str, Any]) -> None:
        object.__setattr__(self, "_candidate", candidate)
        object.__setattr__(self, "_ask", candidate.ask)
        object.__setattr__(self, "_reference", reference)
        self._forget_items()

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", self, *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in _DESCRIPTIONS:
            raise AttributeError(name)
        self._forget_items()
        value = self._ask("getattr", self, name)
        if not _has_plain(name):
            self._candidate.objects_used = True
        elif isinstance(value, Remote) and name not in self._candidate.methods_used:
            self._candidate.fail()
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._forget_items()
        self._ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", self, name)

    def __copy__(self) -> Any:
        return self._ask("copy", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._ask("deepcopy", self)

    def __enter__(self) -> Any:
        return self._ask("getattr", self, "__enter__")()

    def __exit__(self, *error: Any) -> Any:
        return self._ask("getattr", self, "__exit__")(*(None if part is None else str(part) for part in error))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._ask("isinstance", value, self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, Remote) and self._ask("issubclass", kind, self) is True

    def __eq__(self, other: object) -> Any:
        """Compare with another object of the candidate, by its own class. It never equals plain data."""
        if isinstance(other, Remote):
            return self._combined("eq", self, other) is True
        if _has_own_equality(other):
            return NotImplemented
        self._candidate.check_comparable(other)
        return False

    def __next__(self) -> Any:
        items = self._ask("take", self, 1)
        if not items:
            raise StopIteration
        return items[0]

    def __iter__(self) -> Iterator[Any]:
        items = self._items()
        if items is None:
            raise TypeError("the object is not iterable")
        return iter(items)

    def __len__(self) -> int:
        items = self._items()
        return int(self._ask("len", self)) if items is None else sum(1 for _ in items)

    def __bool__(self) -> bool:
        items = self._items()
        return self._ask("bool", self) is True if items is None else any(True for _ in items)

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]

    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self)[::-1])

    def _combined(self, operation: str, *operands: Any) -> Any:
        """What an operator gives. The verdict is 0 where it stands for a value, and nothing that the tests made."""
        value = self._ask(operation, *operands)
        has_plain = not all(isinstance(each, Remote) for each in operands)
        if any(isinstance(each, Made) for each in operands):
            self._candidate.saw_operator(has_plain, between_objects=len(operands) > 1 and not has_plain)
            return self._candidate.made(value) if operation in _GIVE_OBJECTS else value
        if operation not in _ORDERS and (has_plain or not isinstance(value, Remote)):
            self._candidate.fail()
        return value

    def same_object(self, other: Remote) -> bool:
        """Whether both are the same object there."""
        return bool(self._reference == other._reference)

    def _items(self) -> RemoteIterator | None:
        """Its items; None where it has none."""
        if not self._looked_at:
            object.__setattr__(self, "_looked_at", True)
            with contextlib.suppress(TypeError):  # it has no items
                object.__setattr__(self, "_known_items", self._new_iterator())
        return self._known_items  # type: ignore[no-any-return]

    def _forget_items(self) -> None:
        """Something was done to it, so it may have other items now."""
        object.__setattr__(self, "_looked_at", False)
        object.__setattr__(self, "_known_items", None)

    def _new_iterator(self) -> RemoteIterator:
        return RemoteIterator(self._ask, self._ask("iter", self)._reference)


class Made(Remote):
    """An object that the tests made by calling a class by its name, or that operators on such objects gave."""

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        self._candidate.objects_used = True
        return super().__call__(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        self._candidate.methods_used.add(name)
        value = super().__getattr__(name)
        if isinstance(value, Remote) and _has_plain(name):
            self._candidate.saw_operator(on_plain_data=True)
        return value

    def __copy__(self) -> Any:
        return self._candidate.made(super().__copy__())

    def __deepcopy__(self, memo: Any) -> Any:
        return self._candidate.made(super().__deepcopy__(memo))

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.objects_used = True
        super().__setattr__(name, value)

    def __enter__(self) -> Any:
        self._candidate.objects_used = True
        value = super().__enter__()
        return self if isinstance(value, Remote) and self.same_object(value) else value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._new_iterator())


class NamedClass(Made):
    """A class that the tests name."""

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._candidate.made(self._ask("call", self, *arguments, **keywords))

    def __getattr__(self, name: str) -> Any:
        self._candidate.objects_used = True
        return super().__getattr__(name)

    def __instancecheck__(self, value: Any) -> bool:
        self._candidate.objects_used = True
        return super().__instancecheck__(value)


def _has_own_equality(value: object) -> bool:
    """Whether it is of a class of the tests' that says itself what equals it, as a helper for tolerances does."""
    kind = type(value)
    return kind.__module__ == "tests" and kind.__eq__ is not object.__eq__ and not hasattr(kind, "__dataclass_fields__")


def _has_plain(name: str) -> bool:
    """Whether plain data have an attribute ``name``."""
    return name in _PLAIN_ATTRIBUTES or ("numpy" in sys.modules and hasattr(sys.modules["numpy"].ndarray, name))


def _asked(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._ask(operation, self, *arguments)


def _compared(operation: str) -> Callable[..., Any]:
    """An order, which objects of the candidate's have among each other only."""
    return lambda self, other: self._combined(operation, self, other) if isinstance(other, Remote) else NotImplemented


def _combined(operation: str, swapped: bool = False) -> Callable[..., Any]:
    def combine(self: Remote, *arguments: Any) -> Any:
        return self._combined(operation, *([*arguments, self] if swapped else [self, *arguments]))

    return combine


def _dunder(operation: str, prefix: str = "") -> str:
    return f"__{prefix}{operation.rstrip('_')}__"


for _name in _COMPARISONS:
    setattr(Remote, _dunder(_name), _compared(_name))
for _name in (*_BINARY, *_UNARY, *_GIVE_VALUES):
    setattr(Remote, _dunder(_name), _combined(_name))
for _name in _BINARY:
    setattr(Remote, _dunder(_name, "r"), _combined(_name, swapped=True))
    setattr(Remote, _dunder(_name, "i"), _combined(f"i{_name.rstrip('_')}"))
for _name in _CONVERSIONS:
    setattr(Remote, _dunder(_name), _asked(_name))
for _name in _OF_CONTAINERS:
    setattr(Made, _dunder(_name), _asked(_name))
for _name in _WITH_KEYS:
    setattr(Made, _dunder(_name), _combined(_name))
