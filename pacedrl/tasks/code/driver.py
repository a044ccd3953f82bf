"""Runs a row's tests inside a sandbox, against a candidate in another sandbox, and reports the outcome.

Test code comes from the dataset and is trusted to be honest, not to be harmless. Nothing that the candidate says is
trusted: its answers become values of built-in types, built here, so that no comparison runs its code; and once it broke
the protocol (it ended, wrote garbage, sent too much) no test can make it pass. An argument that the candidate changes
in place stays unchanged here: tests see what it returns and raises.

The job is one JSON object on standard input. The report is lines of JSON on standard output, each with the job's token:
``started`` when the tests are usable and the candidate is about to run, then ``passed``; or ``unusable`` with a reason.
``started`` is the number of seconds that a canonical solution took, 0 if there is none. The same line has ``known``,
its answers, to be sent with the next job of these tests, or None if they are longer than ``LONGEST_KNOWN``.
"""

import ast
import builtins
import functools
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from pacedrl.tasks.code import evalplus
from pacedrl.tasks.code.candidate import closed
from pacedrl.tasks.code.candidate_process import CandidateProcess, UnusableError
from pacedrl.tasks.code.compare import prints_the_same, returns_the_same
from pacedrl.tasks.code.implicit_imports import SOURCES, compiled, provide
from pacedrl.tasks.code.proxies import RemoteObject, same_object
from pacedrl.tasks.code.values import decode, send

LONGEST_KNOWN = 256 << 10
"""Bytes of a canonical solution's answers worth remembering. Longer ones are computed as fast as they are read."""

Test = Callable[[CandidateProcess], bool]
"""Whether a candidate passes; it may also raise, which is a failure."""

_SERVES = {"program": "runs", "code": "objects", "operations": "objects"}  # all others: values
_HIDDEN = {"__class__", "__dict__", "__doc__", "__module__"}  # attributes that any object has, here as there
_SAME_OBJECT = "__same_object__"
_BUILT_IN = frozenset(dir(builtins)) | {"__name__"}


def main(seal: Callable[[], None], read: int, write: int) -> None:
    """Run the job on standard input; the candidate's answers come from ``read``, its requests go to ``write``."""
    with os.fdopen(0, "rb", closefd=False) as file:
        job = json.load(file)
    report_to = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # for what tests print
        os.dup2(null, descriptor)

    def report(**what: Any) -> None:
        send(report_to, {"token": job["token"], **what})

    seal()
    candidate = CandidateProcess(os.fdopen(read, "rb"), os.fdopen(write, "wb"))
    try:
        test, known = _prepare(job["tests"])
        candidate.await_ready()
        is_short = known is not None and sum(len(answer or "") for answer in known["answers"]) <= LONGEST_KNOWN
        report(started=known["seconds"] if known else 0.0, known=known if is_short else None)
        report(passed=_passes(test, candidate, job))
    except UnusableError as error:
        report(unusable=str(error)[:500])


def _prepare(tests: dict[str, Any]) -> tuple[Test, dict[str, Any] | None]:
    """Return the test, and the answers and time of the canonical solution, None if there is no such solution."""
    kinds = {"program": _program_test, "calls": _calls_test, "operations": _operations_test, "code": _code_test}
    try:
        if tests["kind"] == "evalplus":
            test, known = evalplus.prepare(tests)
            return (lambda candidate: test(candidate.call)), known
        return kinds[tests["kind"]](tests), None
    except Exception as error:  # test code and canonical solutions may raise anything
        raise _do_not_work(error) from None


def _do_not_work(error: BaseException) -> UnusableError:
    return UnusableError(f"the row's tests do not work: {type(error).__name__}: {error}")


def _passes(test: Test, candidate: CandidateProcess, job: dict[str, Any]) -> bool:
    try:
        candidate.load(job["code"], _SERVES.get(job["tests"]["kind"], "values"))
    except BaseException:  # whatever the completion's own definitions raise
        return False
    try:
        passed = test(candidate)
    except UnusableError:
        raise
    except BaseException as error:  # a failed assertion, a lost candidate, a result the tests choke on, SystemExit
        if candidate.asked or candidate.lost:
            return False
        raise _do_not_work(error) from None
    if not candidate.asked:
        raise UnusableError("the row's tests never call the function that they test")
    return passed and candidate.may_pass


def _program_test(tests: dict[str, Any]) -> Test:
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))
    return lambda candidate: all(prints_the_same(candidate.run(given), expected) for given, expected in pairs)


def _calls_test(tests: dict[str, Any]) -> Test:
    def test(candidate: CandidateProcess) -> bool:
        for arguments, readings in zip(tests["inputs"], tests["outputs"], strict=True):
            value = candidate.call(tests["name"], *decode(arguments))
            if not any(returns_the_same(value, expected) for expected in decode(readings)):
                return False
        return True

    return test


def _operations_test(tests: dict[str, Any]) -> Test:
    """Make a test whose cases each create an object, of the class that the first operation names, and call methods."""
    cases = [decode(case) for case in tests["cases"]]
    results = [(name, value) for names, _, expected in cases for name, value in zip(names, expected, strict=True)]
    compared = {name for name, value in results if value is not None}  # others return nothing, or it is not known

    def test(candidate: CandidateProcess) -> bool:
        candidate.objects_used = True
        for (kind, *names), (first, *rest), (_, *expected) in cases:
            instance = candidate.named_class(kind)(*first)
            for name, arguments, result in zip(names, rest, expected, strict=True):
                value = getattr(instance, name)(*arguments)
                if name in compared and not returns_the_same(value, result):
                    return False
        return True

    return test


def _code_test(tests: dict[str, Any]) -> Test:
    """Make a test of code in which some names are the candidate's; all others must be its own or the prompt's."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    exec(compiled(closed(tests["prompt"]), "<prompt>"), namespace)
    exec(compiled(tests["setup"], "<setup>"), namespace)
    tree = ast.parse(tests["code"])
    name = (tests["name"] or "").partition("(")[0].partition(".")[0] or None  # the class, of Solution().method
    free = _free_names(tree)
    functions, classes = _tested_names(free - (namespace.keys() - {name}), name)
    provide(free - functions - classes)
    nodes = list(ast.walk(tree))
    extended = _names(base for node in nodes if isinstance(node, ast.ClassDef) for base in node.bases) & classes
    if extended:
        raise TypeError(f"they extend {min(extended)}, a class of the code's own, which cannot be done from outside")
    hidden = {node.attr for node in nodes if isinstance(node, ast.Attribute)} & _HIDDEN
    if classes and hidden:
        raise TypeError(f"they read {min(hidden)}, which objects of the code's do not have outside of it")
    caught = _names(node.type for node in nodes if isinstance(node, ast.ExceptHandler) and node.type) & classes
    caught |= {name for name in classes if name.endswith(("Error", "Exception"))}
    if classes:
        tree = ast.fix_missing_locations(_Identity().visit(tree))
    code = compile(tree, "<tests>", "exec")
    if "random" in tests["code"]:  # a verdict should not depend on the inputs drawn
        import random

        random.seed(0)

    def test(candidate: CandidateProcess) -> bool:
        candidate.objects_used = tests["says_class"]
        candidate.exceptions = {name: type(name, (Exception,), {}) for name in caught}
        namespace.update({name: functools.partial(candidate.call, name) for name in functions})
        namespace.update({name: candidate.named_class(name) for name in classes - caught})
        namespace.update(candidate.exceptions)
        if classes:
            namespace.update({name: _for_proxies(candidate, name) for name in ("type", "vars", "dir")})
            namespace[_SAME_OBJECT] = same_object
        candidate.asked = False  # the tests have not asked for anything yet
        exec(code, namespace)
        return True

    return test


class _Identity(ast.NodeTransformer):
    """Makes ``a is b`` a call of ``same_object``: one object of the candidate's may have two proxies."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1 or not isinstance(node.ops[0], ast.Is | ast.IsNot):
            return node
        call = ast.Call(ast.Name(_SAME_OBJECT, ast.Load()), [node.left, *node.comparators], [])
        return call if isinstance(node.ops[0], ast.Is) else ast.UnaryOp(ast.Not(), call)


def _for_proxies(candidate: CandidateProcess, name: str) -> Callable[..., Any]:
    """Return the built-in function ``name``, extended to take objects of the candidate."""
    function = getattr(builtins, name)
    return lambda *arguments: (
        candidate.ask(name, *arguments)
        if any(isinstance(each, RemoteObject) for each in arguments)
        else function(*arguments)
    )


def _tested_names(free: set[str], name: str | None) -> tuple[set[str], set[str]]:
    """Choose, from the names that the tests do not define, the tested function (if there is one) and classes.

    A name with a capital letter counts as a class, and there may be several. A name that programs may use without an
    import is the candidate's only if there is no other. Raises NameError if names are left that nothing defines, or if
    there is no name at all.
    """
    own = (free - SOURCES.keys()) | (free & {name}) or {key for key in free if key[0].islower()} or free
    classes = {key for key in own if key.lstrip("_")[:1].isupper()}
    functions = own - classes
    unknown = functions - {name}
    if not own or len(functions) > 1 or (name and unknown):
        raise NameError(f"they use names that nothing defines: {', '.join(sorted(unknown)) or 'none'}")
    return functions, classes


def _free_names(tree: ast.AST) -> set[str]:
    """Return the names that are read somewhere and bound nowhere; scopes are not told apart."""
    read: set[str] = set()
    bound = set(_BUILT_IN)
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.add(name)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.MatchMapping(rest=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=asname):
                bound.add(asname or name.partition(".")[0])
            case _:  # functions, classes, caught exceptions and patterns have a name
                bound.add(getattr(node, "name", ""))
    return read - bound


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for root in nodes for node in ast.walk(root) if isinstance(node, ast.Name)}
