"""Imports have one direction: no room of the package imports one that directly or indirectly imports it."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path

from docs_blocks import ROOT

import pacedrl

PACKAGE = Path(pacedrl.__file__).parent
LOW_TO_HIGH = ("method", "tasks", "policy", "rollouts", "evaluation", "training", "report", "lab", "cli")
"""No room in this list imports one to its right. The others (config, distributed, ...) are checked for cycles only."""


def rooms() -> dict[str, set[str]]:
    """Each room (a folder, or a file beside the folders) and the rooms that it imports, also inside functions."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            found.setdefault(room, set()).update(name for name in imported(path) if name != room)
    return found


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" if node.module == "pacedrl" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "pacedrl":
                assert rest, f"{path}: imports the package itself"
                yield rest.partition(".")[0]


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting.extend(new)
    return seen


def test_no_room_imports_itself_by_way_of_others() -> None:
    graph = rooms()
    assert {"method", "policy", "rollouts", "training", "lab", "cli"} <= graph.keys()
    assert {room for room in graph if room in reachable(room, graph)} == set()


def test_no_import_runs_up() -> None:
    graph = rooms()
    for i, room in enumerate(LOW_TO_HIGH):
        above = set(LOW_TO_HIGH[i + 1 :])
        assert not reachable(room, graph) & above, room


def test_the_method_needs_nothing_else_of_the_package() -> None:
    assert rooms()["method"] == set()


def test_the_picture_of_the_rooms_is_that_of_the_code() -> None:
    drawing = runpy.run_path(str(ROOT / "docs/rooms.py"))
    picture = drawing["draw"](drawing["floors"](drawing["imports"]()))
    assert drawing["PICTURE"].read_text(encoding="utf-8") == picture, "run: python docs/rooms.py"
