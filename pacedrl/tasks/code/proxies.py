"""Proxies for the candidate's objects, as tests see them: lists of items, iterators, and objects that stay there.

A proxy never equals plain data. Operators combine a proxy with plain data only if the tests created its object, by
calling a class by its name or by operators on such objects; the same holds for methods that plain data have. With any
other object, such as one that a function returned where a number is expected, they make the verdict 0.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pacedrl.tasks.code.values import is_iterable

if TYPE_CHECKING:
    from pacedrl.tasks.code.candidate_process import CandidateProcess

_PLAIN_ATTRIBUTES = frozenset(
    name for kind in (str, bytes, int, float, complex, list, tuple, dict, set, frozenset) for name in dir(kind)
)
_DESCRIPTIONS = frozenset(
    f"__{name}__" for name in ("name", "qualname", "wrapped", "members", "annotations", "bases", "mro", "slots")
)
"""Names with two underscores that tests may read. Others would make libraries treat the proxy as one of their types."""

# Operators, by their names in the modules operator and builtins.
_ORDERS = ("lt", "le", "gt", "ge")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_UNARY = ("neg", "pos", "invert")
_GIVE_OBJECTS = frozenset([*_BINARY, *(f"i{name.rstrip('_')}" for name in _BINARY), *_UNARY])


def _items_of(value: Any) -> list[Any] | None:
    """Return the items of a list, or of an iterable that is compared like one; None for anything else."""
    if isinstance(value, str | bytes | tuple | dict | set | frozenset):
        return None
    is_list = isinstance(value, list | collections.deque) or (is_iterable(value) and not hasattr(value, "__next__"))
    return list(value) if is_list else None


class Items(list[Any]):
    """The items of a range, view or the like. It equals any list with the same items, and any set of them."""

    def __eq__(self, other: object) -> bool:
        if isinstance(other, set | frozenset):
            return len(self) == len(other) and set(self) == other
        return list(self) == _items_of(other)

    __hash__ = None


class Deque(collections.deque[Any]):
    """A deque that equals any list with the same items."""

    def __eq__(self, other: object) -> bool:
        return list(self) == _items_of(other)

    __hash__ = None


class RemoteIterator:
    """An iterator of the candidate's, possibly endless. It equals a list of the items that it has left.

    Only ``next`` consumes items; a loop leaves them. Otherwise a check of every item could pass because none is left.
    """

    def __init__(self, candidate: CandidateProcess, reference: dict[str, Any]) -> None:
        self._candidate = candidate
        self._reference = reference
        self._items: list[Any] = []
        self._next = 0
        self._ended = False

    def _has(self, index: int) -> bool:
        while index >= len(self._items) and not self._ended:
            count = min(max(1, len(self._items)), 1000)  # one message per item would be slow
            items = self._candidate.ask("take", self, count)
            self._items += items
            self._ended = len(items) < count
        return index < len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count(self._next):
            if not self._has(index):
                return
            yield self._items[index]

    def __next__(self) -> Any:
        if not self._has(self._next):
            raise StopIteration
        self._next += 1
        return self._items[self._next - 1]

    def __eq__(self, other: object) -> bool:
        items = _items_of(other)
        return items is not None and list(itertools.islice(iter(self), len(items) + 1)) == items

    __hash__ = None  # type: ignore[assignment]


class RemoteObject:
    """An object of the candidate's that is not plain data, such as a function that it returned.

    It can be called and has attributes, conversions such as ``str``, and the items that it gave when the tests first
    looked at them, because a value would give the same items again. Operators combine it with other objects of the
    candidate's if the result is an object again.
    """

    _candidate: CandidateProcess
    _reference: dict[str, Any]

    def __init__(self, candidate: CandidateProcess, reference: dict[str, Any]) -> None:
        vars(self).update(_candidate=candidate, _reference=reference)

    def _ask(self, operation: str, /, *arguments: Any, **keywords: Any) -> Any:
        return self._candidate.ask(operation, self, *arguments, **keywords)

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        candidate = self._candidate
        is_created = isinstance(self, CreatedObject)
        if is_created:
            candidate.methods_used.add(name)
            candidate.objects_used |= isinstance(self, NamedClass)
        if name.startswith("__") and name.endswith("__") and name not in _DESCRIPTIONS:
            raise AttributeError(name)
        self._forget_items()
        value = self._ask("getattr", name)
        if not _is_plain_attribute(name):
            candidate.objects_used = True
        elif isinstance(value, RemoteObject):
            if name not in candidate.methods_used:
                candidate.fail()
            candidate.used_like_plain_data |= is_created
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._forget_items()
        self._ask("setattr", name, value)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._ask("deepcopy")

    def __enter__(self) -> Any:
        return self._ask("getattr", "__enter__")()

    def __exit__(self, *error: Any) -> Any:
        return self._ask("getattr", "__exit__")(*(None if part is None else str(part) for part in error))

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, RemoteObject) and value._ask("isinstance", self) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return isinstance(kind, RemoteObject) and kind._ask("issubclass", self) is True

    def __eq__(self, other: object) -> Any:
        """Compare with another object of the candidate's by its own class. Plain data never equal it."""
        if isinstance(other, RemoteObject):
            return _combine(self, "eq", other) is True
        if _has_own_equality(other):
            return NotImplemented
        self._candidate.check_comparable(other)
        return False

    def __next__(self) -> Any:
        items = self._ask("take", 1)
        if not items:
            raise StopIteration
        return items[0]

    def __iter__(self) -> Iterator[Any]:
        items = self._first_items()
        if items is None:
            raise TypeError("the object is not iterable")
        return iter(items)

    def __len__(self) -> int:
        items = self._first_items()
        return int(self._ask("len")) if items is None else sum(1 for _ in items)

    def __bool__(self) -> bool:
        items = self._first_items()
        return self._ask("bool") is True if items is None else any(True for _ in items)

    def __getitem__(self, place: Any) -> Any:
        return list(self)[place]

    def __reversed__(self) -> Iterator[Any]:
        return iter(list(self)[::-1])

    def _first_items(self) -> RemoteIterator | None:
        """Return the items that the first look gave; None if the object has none."""
        kept = vars(self)
        if "_known_items" not in kept:
            kept["_known_items"] = None
            with contextlib.suppress(TypeError):  # it has no items
                kept["_known_items"] = self._new_iterator()
        return kept["_known_items"]  # type: ignore[no-any-return]

    def _forget_items(self) -> None:
        """Forget the items, because the object may have changed."""
        vars(self).pop("_known_items", None)

    def _new_iterator(self) -> RemoteIterator:
        return RemoteIterator(self._candidate, self._ask("iter")._reference)


class CreatedObject(RemoteObject):
    """An object that the tests created: by calling a class by its name, or by operators on such objects."""

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        self._candidate.objects_used = True
        return super().__call__(*arguments, **keywords)

    def __copy__(self) -> Any:
        return self._candidate.created(self._ask("copy"))

    def __deepcopy__(self, memo: Any) -> Any:
        return self._candidate.created(super().__deepcopy__(memo))

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.objects_used = True
        super().__setattr__(name, value)

    def __enter__(self) -> Any:
        self._candidate.objects_used = True
        value = super().__enter__()
        return self if same_object(self, value) else value

    def __iter__(self) -> Iterator[Any]:
        return iter(self._new_iterator())


class NamedClass(CreatedObject):
    """A class that the tests name."""

    def __call__(self, /, *arguments: Any, **keywords: Any) -> Any:
        return self._candidate.created(self._ask("call", *arguments, **keywords))

    def __instancecheck__(self, value: Any) -> bool:
        self._candidate.objects_used = True
        return super().__instancecheck__(value)


def same_object(left: Any, right: Any) -> bool:
    """Tell whether both are one object; one object of the candidate's may have several proxies."""
    both = isinstance(left, RemoteObject) and isinstance(right, RemoteObject)
    return left is right or (both and left._reference == right._reference)


def _has_own_equality(value: object) -> bool:
    """Tell whether the tests define its class with an ``__eq__``, as a helper for tolerances does."""
    kind = type(value)
    return kind.__module__ == "tests" and kind.__eq__ is not object.__eq__ and not hasattr(kind, "__dataclass_fields__")


def _is_plain_attribute(name: str) -> bool:
    return name in _PLAIN_ATTRIBUTES or ("numpy" in sys.modules and hasattr(sys.modules["numpy"].ndarray, name))


def _combine(proxy: RemoteObject, operation: str, *others: Any, swapped: bool = False) -> Any:
    """Return an operator's result. If an object that the tests did not create acts as a value, the verdict is 0."""
    has_plain = not all(isinstance(each, RemoteObject) for each in others)
    if has_plain and operation in _ORDERS:
        return NotImplemented
    candidate = proxy._candidate
    operands = (*others, proxy) if swapped else (proxy, *others)
    value = candidate.ask(operation, *operands)
    if any(isinstance(each, CreatedObject) for each in operands):
        if has_plain:
            candidate.used_like_plain_data = True
        elif others:
            candidate.objects_used = True
        return candidate.created(value) if operation in _GIVE_OBJECTS else value
    if operation not in ("eq", *_ORDERS) and (has_plain or not isinstance(value, RemoteObject)):
        candidate.fail()
    return value


def _define(kind: type, function: Callable[..., Any], *operations: str) -> None:
    for name in operations:
        setattr(kind, f"__{name.rstrip('_')}__", functools.partialmethod(function, name))


_define(RemoteObject, _combine, *_ORDERS, *_GIVE_OBJECTS, "abs", "round", "divmod", "index")
_define(RemoteObject, RemoteObject._ask, "str", "repr", "format", "bytes", "hash", "int", "float", "copy", "delattr")
_define(CreatedObject, RemoteObject._ask, "len", "bool", "reversed")
_define(CreatedObject, _combine, "contains", "getitem", "setitem", "delitem")
for _name in _BINARY:
    setattr(RemoteObject, f"__r{_name.rstrip('_')}__", functools.partialmethod(_combine, _name, swapped=True))
