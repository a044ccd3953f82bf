"""Values and messages between the two sandboxes of a verdict on code.

A message is a line of JSON. Whatever arrives becomes a value of one of the types below, built anew, so that comparing
it runs no code of the sender's: this is what makes a verdict safe. Imports stay few: every verdict pays for them.

"Plain data" is None, numbers (also Fraction and Decimal), strings, bytes, dates and times, the built-in containers and
those of ``collections``, built-in types such as ``int``, and numpy's arrays if numpy is installed.
"""

import builtins
import collections
import itertools
import json
from collections.abc import Callable
from typing import IO, Any

LONGEST_MESSAGE = 16 << 20
"""Maximum bytes of a line. A longer answer is a failure, as is printing more than an eighth of this in a run."""
MOST_ITEMS = 1 << 20
"""Maximum number of items that are taken from an iterable that is sent."""

_SMALL = 1 << 63  # larger integers are sent in hexadecimal, which takes time proportional to their length
_SCALARS = {str, int, float, bool, type(None)}
_DICTS = {"Counter": collections.Counter, "OrderedDict": collections.OrderedDict, "dict": dict}
_SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MODULES_OF_ITERABLES = {"builtins", "itertools", "collections", "collections.abc", "array"}
_LONGEST_TEXT = 1000  # of an exception

Exceptions = dict[str, type[Exception]]
"""Classes by name."""
Sender = Callable[[Any], Any]
"""Encodes a value that is not plain data; it may raise NotPlainDataError."""
Receiver = Callable[[str, Any], Any]
"""Decodes a tag and its content that are not plain data; it may raise anything."""


class NotPlainDataError(TypeError):
    """A value that cannot be sent; the message names its type."""


def refuse(value: Any) -> Any:
    kind = type(value)
    raise NotPlainDataError(kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}")


def encode(value: Any, send_other: Sender = refuse) -> Any:
    """Return ``value`` as JSON: strings, numbers, None and lists as they are, all else as ``{tag: ...}``.

    Subclasses are sent as the type they extend, a match of a regular expression as True. Raises RecursionError if the
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
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {tag: encode(list(value), send_other)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, type) and value in vars(builtins).values():
        return {"type": value.__name__}
    message = _encode_of_library(value)
    return send_other(value) if message is None else message


def _encode_of_library(value: Any) -> Any:
    """Encode types of the library, recognized by name so that nothing is imported; None for any other."""
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
    """Tell whether the items are JSON as they are; most long lists hold numbers or strings."""
    kinds = set(map(type, items))
    return kinds <= _SCALARS and (
        int not in kinds or all(-_SMALL < item < _SMALL for item in items if type(item) is int)
    )


def is_iterable(value: Any) -> bool:
    """Tell whether it is an iterator, range, view or the like of Python's own, which are sent as their items."""
    return type(value).__module__ in _MODULES_OF_ITERABLES and hasattr(type(value), "__iter__")


def send_items(value: Any, send_other: Sender | None = None) -> Any:
    """Encode an iterable as the list of its items. Raises ValueError for more than MOST_ITEMS.

    ``send_other`` encodes those items that are not plain data; by default it is this function.
    """
    if not is_iterable(value):
        refuse(value)
    items = list(itertools.islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ValueError(f"{type(value).__name__} of more than {MOST_ITEMS} items")
    return encode(items, send_other or send_items)


def refuse_tag(tag: str, content: Any) -> Any:
    raise ValueError(f"no plain data: {tag}")


def decode(message: Any, receive_other: Receiver = refuse_tag) -> Any:
    """Return the value that ``encode`` turned into ``message``, new at every call. A forged one may raise anything."""
    if isinstance(message, list):
        is_json = set(map(type, message)) <= _SCALARS
        return message[:] if is_json else [decode(item, receive_other) for item in message]
    if not isinstance(message, dict):
        return message
    ((tag, content),) = message.items()
    match tag:
        case "tuple" | "set" | "frozenset":
            return _SEQUENCES[tag](decode(content, receive_other))
        case "dict" | "Counter" | "OrderedDict":
            return _DICTS[tag]({decode(key, receive_other): decode(item, receive_other) for key, item in content})
        case "int":
            return int(content, 16)
        case "complex":
            return complex(*content)
        case "bytes":
            return bytes.fromhex(content)
        case "namedtuple":
            name, fields, values = content
            return collections.namedtuple(name, fields)(*decode(values, receive_other))
    return _decode_of_library(tag, content, receive_other)


def _decode_of_library(tag: str, content: Any, receive_other: Receiver) -> Any:
    """Decode rarer types, whose modules are imported when the first value arrives."""
    match tag:
        case "type" if isinstance(kind := getattr(builtins, content), type):
            return kind
        case "Fraction":
            import fractions

            return fractions.Fraction(*decode(content))
        case "Decimal":
            import decimal

            return decimal.Decimal(content)
        case "datetime" | "date" | "time" | "timedelta":
            import datetime

            kind = getattr(datetime, tag)
            return kind(*content) if tag == "timedelta" else kind.fromisoformat(content)
        case "ndarray":
            import numpy

            return numpy.array(decode(content[0]), dtype=content[1])
    return receive_other(tag, content)


def describe(error: BaseException) -> list[Any]:
    """Describe an exception by the names of its types, its arguments, its text, and its attributes that are plain data.

    The arguments are left out unless they are plain data. A class whose ``__str__`` raises makes this function raise.
    """
    text = str(error)
    arguments = _encoded([error.args]) if len(text) <= _LONGEST_TEXT else []
    attributes = [[name, *_encoded([value])] for name, value in vars(error).items()]
    plain = [pair for pair in attributes if len(pair) > 1]
    return [[kind.__name__ for kind in type(error).__mro__], arguments, text[:_LONGEST_TEXT], plain]


def _encoded(values: list[Any]) -> list[Any]:
    """Return the values encoded; nothing if they are not plain data."""
    try:
        return [encode(value) for value in values]
    except (NotPlainDataError, RecursionError):
        return []


def rebuild(known: Exceptions, types: list[str], arguments: list[Any], text: str, attributes: list[Any]) -> Exception:
    """Rebuild the exception that ``describe`` got, as the first of its types that is ``known`` or built in.

    The text stands in for missing arguments. The result ends no iteration and no process.
    """
    values = decode(arguments[0]) if arguments else (text,)
    for name in types:
        kind = known.get(name, getattr(builtins, name, None))
        if not isinstance(kind, type) or not issubclass(kind, Exception) or "Iteration" in name:
            continue
        try:
            error = kind(*values)
            if str(error)[:_LONGEST_TEXT] != text:  # its class makes its own text
                error = type(name, (kind,), {"__str__": lambda self: text})(*values)
        except TypeError:  # it needs other arguments; its base class may not
            continue
        vars(error).update((name, decode(value)) for name, value in attributes)
        return error
    return Exception(text)


def send(file: IO[bytes], message: Any) -> None:
    """Write one message. Raises OSError if nobody reads."""
    file.write(json.dumps(message).encode("ascii") + b"\n")
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Read one message. Raises EOFError at the end and for a message too long, ValueError for one that is not JSON."""
    line = file.readline(LONGEST_MESSAGE)
    if not line.endswith(b"\n"):
        raise EOFError
    return json.loads(line)
