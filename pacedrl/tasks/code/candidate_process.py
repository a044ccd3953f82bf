"""The candidate's process, as tests see it: pipes call its functions, and its objects stay there.

Nothing that the candidate says is trusted. A result becomes plain data, built here, if possible, else one of the
classes of ``proxies``. So only the expected value itself passes a test that expects a value.
"""

import collections
from typing import IO, Any, NoReturn

from pacedrl.tasks.code.proxies import CreatedObject, Deque, Items, NamedClass, RemoteIterator, RemoteObject
from pacedrl.tasks.code.values import (
    Exceptions,
    NotPlainDataError,
    decode,
    describe,
    encode,
    rebuild,
    receive,
    refuse_tag,
    send,
    send_items,
)


class UnusableError(BaseException):
    """The row's tests cannot judge anything. It extends BaseException so that tests do not catch it."""


class CandidateLostError(BaseException):
    """The candidate ended or broke the protocol. It extends BaseException so that tests do not catch it."""


class CandidateProcess:
    """The process that runs the candidate's code (see ``candidate``)."""

    def __init__(self, answers: IO[bytes], requests: IO[bytes]) -> None:
        self._answers = answers
        self._requests = requests
        self.asked = False
        """Whether the tests asked it for anything."""
        self.lost = False
        """Whether it broke the protocol."""
        self.objects_used = False
        """Whether the tests surely test a class: they used an object as nobody uses plain data."""
        self.used_like_plain_data = False
        """Whether an object that the tests created met plain data, or a method that plain data have."""
        self.methods_used: set[str] = set()
        """Names of attributes that the tests read of objects that they created."""
        self.exceptions: Exceptions = {}
        """The tests' own classes for exceptions that the candidate defines, by name."""
        self._objects: dict[tuple[type[RemoteObject], int], RemoteObject] = {}

    def await_ready(self) -> None:
        """Wait for the process. Raises UnusableError if it ended before it ran anything of the completion's."""
        try:
            ready = receive(self._answers) == "ready"
        except (EOFError, ValueError):
            ready = False
        if not ready:
            raise UnusableError("the candidate's sandbox did not start")

    def load(self, code: dict[str, Any], serves: str) -> None:
        """Run the candidate's definitions; raises whatever they raise. ``candidate`` says what ``serves`` can be."""
        self._exchange({"code": code, "serves": serves})

    def call(self, name: str, /, *arguments: Any, **keywords: Any) -> Any:
        """Call its function ``name``. An exception that it raises is raised here as the nearest built-in one."""
        return self.ask("call", RemoteObject(self, {"name": name}), *arguments, **keywords)

    def ask(self, operation: str, /, *arguments: Any, **keywords: Any) -> Any:
        """Return the result of an operation in the candidate's sandbox; exceptions as in ``call``.

        Raises UnusableError for arguments that cannot be sent.
        """
        self.asked = True
        return self._exchange([operation, *_encoded([list(arguments), keywords], "pass the code")])

    def named_class(self, name: str) -> Any:
        """Return its class (or whatever it has) of that name."""
        return self.created(self.ask("find", name), NamedClass)

    def created(self, value: Any, kind: type[RemoteObject] = CreatedObject) -> Any:
        """Return ``value``, as an object that the tests created if it is an object."""
        return self._object(value._reference["object"], kind) if isinstance(value, RemoteObject) else value

    def fail(self) -> NoReturn:
        """Make the verdict 0, whatever the tests do next: they used an object where a value is expected."""
        self.lost = True
        raise CandidateLostError

    @property
    def may_pass(self) -> bool:
        """Whether nothing rules out a pass. A name with a capital letter, taken for a class, may be a function's."""
        return not self.lost and (self.objects_used or not self.used_like_plain_data)

    def check_comparable(self, value: object) -> None:
        """Raise UnusableError if nothing that the candidate can send equals ``value``."""
        _encoded(value, "compare a result with")

    def run(self, text: str) -> str:
        """Return what its program prints, given ``text`` on standard input; raises an exception if it fails."""
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
        except BaseException:  # it ended, or sent garbage, or something too long, too deep or too large
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
                return RemoteIterator(self, {"object": int(content)})
            case "coroutine":
                return self._coroutine(content)
            case "error":
                return rebuild(self.exceptions, *content)
            case "object":
                return self._object(int(content))
        return refuse_tag(tag, content)

    async def _coroutine(self, content: int) -> Any:
        return self.ask("awaited", self._object(content))

    def _object(self, place: int, kind: type[RemoteObject] = RemoteObject) -> RemoteObject:
        """Return the one proxy of this ``kind`` for the candidate's object."""
        return self._objects.setdefault((kind, place), kind(self, {"object": place}))


def _encoded(value: Any, what_tests_do: str) -> Any:
    try:
        return encode(value, _send_argument)
    except NotPlainDataError as error:
        raise UnusableError(
            f"the row's tests {what_tests_do} a value of type {error}, and only plain data can be sent to it or come "
            "from it"
        ) from None


def _send_argument(value: Any) -> Any:
    """Encode an argument that is not plain data. Raises NotPlainDataError for what only the tests can have created."""
    if isinstance(value, RemoteObject | RemoteIterator):
        return value._reference
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, BaseException):
        return {"error": describe(value)}
    if getattr(value, "cr_code", None) is CandidateProcess._coroutine.__code__:
        raise TypeError("a coroutine of the candidate's was passed on before it was awaited")
    items = send_items(value, _send_argument)
    if isinstance(value, collections.deque):
        return {"deque": items}
    return {"items": items} if hasattr(value, "__next__") else items
