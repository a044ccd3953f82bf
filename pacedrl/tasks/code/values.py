"""Values and messages between the two sandboxes of a verdict on code.

This file is shown to both sandboxes, so it imports the standard library only, and of that only what every verdict
needs. A message is a line of JSON. Whatever arrives becomes a value of one of the types below, built anew, so that
comparing it runs no code of the sender's: this is what makes a verdict safe.

"Plain data" is None, numbers (Fraction and Decimal too), strings, bytes, dates and times, the built-in containers and
those of ``collections``, built-in types such as ``int``, and numpy's arrays where numpy is there.
"""

from __future__ import annotations

import builtins
import collections
import itertools
import json
from collections.abc import Callable
from typing import IO, Any

LONGEST_MESSAGE = 16 << 20
"""Bytes of a line. A longer answer is a failure; so is printing more than an eighth of it in a run."""
MOST_ITEMS = 1 << 20
"""Items that an iterable may give, where all of them are wanted."""

_SMALL = 1 << 63  # larger integers are sent in hexadecimal, which takes time proportional to their length
_SCALARS = {str, int, float, bool, type(None)}
_MODULES_OF_ITERABLES = {"builtins", "itertools", "collections", "collections.abc", "array"}


_LONGEST_TEXT = 1000  # of an exception

Exceptions = dict[str, type[Exception]]
"""Classes by name."""


class NotPlainDataError(TypeError):
    """A value that cannot be sent; the message names its type."""


Sender = Callable[[Any], Any]
"""What is sent for a value that is no plain data; it may raise NotPlainDataError."""
Receiver = Callable[[str, Any], Any]
"""What arrives for a tag and its content that are no plain data; it may raise anything."""


def refuse(value: Any) -> Any:
    """Raise NotPlainDataError."""
    kind = type(value)
    raise NotPlainDataError(kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}")


def encode(value: Any, send_other: Sender = refuse) -> Any:
    """``value`` as JSON: strings, numbers, None and lists as they are, all else as ``{tag: ...}``.

    Subclasses are sent as the type they extend, a match of a regular expression as True. RecursionError where the
    value is nested too deeply.
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
        return list(value) if _is_json(value) else [encode(item, send_other) for item in value]
    if isinstance(value, dict):
        tag = "dict" if type(value) is dict else next(name for name, kind in _DICTS.items() if isinstance(value, kind))
        return {tag: [[encode(key, send_other), encode(item, send_other)] for key, item in value.items()]}
    if type(value) is not tuple and isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"namedtuple": [type(value).__name__, list(value._fields), encode(list(value), send_other)]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: encode(list(value), send_other)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, type) and value in vars(builtins).values():
        return {"type": value.__name__}
    message = _encode_of_library(value)
    return send_other(value) if message is None else message


def _encode_of_library(value: Any) -> Any:
    """Types of the library that are told by name, so that nothing is imported; None for any other."""
    for kind in type(value).__mro__:
        match kind.__module__, kind.__name__:
            case "re", "Match":  # MBPP's tests take it for a truth value
                return True
            case "fractions", "Fraction":
                return {"Fraction": encode([value.numerator, value.denominator])}
            case "decimal", "Decimal":
                return {"Decimal": str(value)}
            case "datetime", "datetime" | "date" | "time":
                return {kind.__name__: value.isoformat()}
            case "datetime", "timedelta":
                return {"timedelta": [value.days, value.seconds, value.microseconds]}
            case "numpy", "generic":
                return encode(value.item())
            case "numpy", "ndarray":
                return {"ndarray": [encode(value.tolist()), value.dtype.str]}
    return None


def _is_json(items: list[Any]) -> bool:
    """Whether JSON says them as they are: most lists that are long hold numbers or strings."""
    kinds = set(map(type, items))
    return kinds <= _SCALARS and (
        int not in kinds or all(-_SMALL < item < _SMALL for item in items if type(item) is int)
    )


def is_iterable(value: Any) -> bool:
    """Whether it is an iterator, range, view or the like of Python's own, which are sent as their items."""
    return type(value).__module__ in _MODULES_OF_ITERABLES and hasattr(type(value), "__iter__")


def send_items(value: Any, send_other: Sender | None = None) -> Any:
    """A ``Sender`` that sends an iterable as the list of its items; ValueError for more than MOST_ITEMS.

    What among the items is no plain data goes to ``send_other``, and to this function where there is none.
    """
    if not is_iterable(value):
        refuse(value)
    items = list(itertools.islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ValueError(f"{type(value).__name__} of more than {MOST_ITEMS} items")
    return encode(items, send_other or send_items)


def receive_none(tag: str, content: Any) -> Any:
    """Raise ValueError."""
    raise ValueError(f"no plain data: {tag}")


def decode(message: Any, receive_other: Receiver = receive_none) -> Any:
    """The value that ``encode`` turned into ``message``, new at every call. A forged message may raise anything."""
    if isinstance(message, list):
        known = set(map(type, message)) <= _SCALARS
        return message[:] if known else [decode(item, receive_other) for item in message]
    if not isinstance(message, dict):
        return message
    ((tag, content),) = message.items()
    build = _BUILD.get(tag)
    return receive_other(tag, content) if build is None else build(content, receive_other)


def _decode_type(name: str, receive_other: Receiver) -> type:
    kind = getattr(builtins, name)
    if not isinstance(kind, type):
        raise ValueError(f"no type: {name}")
    return kind


def _decode_namedtuple(content: Any, receive_other: Receiver) -> Any:
    name, fields, values = content
    return collections.namedtuple(name, fields)(*decode(values, receive_other))


def _decode_array(content: Any, receive_other: Receiver) -> Any:
    import numpy

    return numpy.array(decode(content[0]), dtype=content[1])


def _decode_of_library(tag: str) -> Callable[[Any, Receiver], Any]:
    """A function that builds a value of the standard library. It imports the module when the first value arrives."""

    def build(content: Any, receive_other: Receiver) -> Any:
        import datetime
        import decimal
        import fractions

        match tag:
            case "Fraction":
                return fractions.Fraction(*decode(content))
            case "Decimal":
                return decimal.Decimal(content)
            case "timedelta":
                return datetime.timedelta(*content)
        return getattr(datetime, tag).fromisoformat(content)

    return build


_DICTS = {"Counter": collections.Counter, "OrderedDict": collections.OrderedDict, "dict": dict}
_BUILD: dict[str, Callable[[Any, Receiver], Any]] = {
    "int": lambda digits, _: int(digits, 16),
    "dict": lambda items, other: {decode(key, other): decode(item, other) for key, item in items},
    "Counter": lambda items, other: collections.Counter(_BUILD["dict"](items, other)),
    "OrderedDict": lambda items, other: collections.OrderedDict(_BUILD["dict"](items, other)),
    "tuple": lambda items, other: tuple(decode(items, other)),
    "set": lambda items, other: set(decode(items, other)),
    "frozenset": lambda items, other: frozenset(decode(items, other)),
    "namedtuple": _decode_namedtuple,
    "complex": lambda parts, _: complex(*parts),
    "bytes": lambda digits, _: bytes.fromhex(digits),
    "type": _decode_type,
    "ndarray": _decode_array,
    **{tag: _decode_of_library(tag) for tag in ("Fraction", "Decimal", "datetime", "date", "time", "timedelta")},
}


def describe(error: BaseException) -> list[Any]:
    """An exception as the names of its types, its arguments, its text, and those of its attributes that are plain data.

    Its text stands for arguments that are no plain data. A class whose ``__str__`` raises makes this raise, too.
    """
    text = str(error)
    arguments = _encoded([error.args]) if len(text) <= _LONGEST_TEXT else []
    attributes = [[name, *_encoded([value])] for name, value in vars(error).items()]
    plain = [pair for pair in attributes if len(pair) > 1]
    return [[kind.__name__ for kind in type(error).__mro__], arguments, text[:_LONGEST_TEXT], plain]


def _encoded(values: list[Any]) -> list[Any]:
    """The values as ``encode`` has them; empty where they are no plain data."""
    try:
        return [encode(value) for value in values]
    except (NotPlainDataError, RecursionError):
        return []


def rebuild(known: Exceptions, types: list[str], arguments: list[Any], text: str, attributes: list[Any]) -> Exception:
    """The exception that ``describe`` had, of the first of its types that is ``known`` or built in.

    It ends no iteration, and no process.
    """
    values = decode(arguments[0]) if arguments else (text,)
    for name in types:
        kind = known.get(name, getattr(builtins, name, None))
        if not isinstance(kind, type) or not issubclass(kind, Exception) or "Iteration" in name:
            continue
        try:
            error = kind(*values)
            if str(error)[:_LONGEST_TEXT] != text:  # its class has a text of its own
                error = type(name, (kind,), {"__str__": lambda self: text})(*values)
        except TypeError:  # it needs other arguments; its base class may not
            continue
        vars(error).update((name, decode(value)) for name, value in attributes)
        return error
    return Exception(text)


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
