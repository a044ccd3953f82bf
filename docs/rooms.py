"""Draws docs/images/rooms.svg: the package's rooms, each above all rooms it imports. Run it after moving modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pacedrl"
PICTURE = ROOT / "docs/images/rooms.svg"
ROOMS = {
    "cli": "one thin module per verb",
    "lab": "comparisons and calibration",
    "doctor": "checks before training",
    "init": "writes a first configuration",
    "judging": "tries a verifier on a file",
    "report": "a run's page, followed live",
    "training": "the loop, objectives, learner, checkpoints",
    "integrations": "the scheduler in TRL and verl",
    "evaluation": "pass@k on held-out tasks",
    "rollouts": "prompts sampled, judged, gated",
    "policy": "model, sampler, log-probabilities, vLLM",
    "tasks": "datasets, verifiers, their processes",
    "distributed": "several processes, sharding",
    "diagnosis": "rules: what is wrong with a run",
    "method": "losses, log Z, selection, replay",
    "config": "all settings; recipes",
}
"""The rooms that are drawn. Single files that these share (types, errors, view, ...) lie below all of them."""
WIDTH, HEIGHT, GAP, MARGIN = 236, 52, 12, 16


def imports() -> dict[str, set[str]]:
    """Each room, which is a folder or a file of the package, and the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(room, set()).update(name for name in _imported(path) if name != room)
    return found


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pacedrl."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pacedrl."))


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """The drawn rooms by floor, from the top: a room is one floor above the highest room that it imports."""

    @cache
    def floor(room: str) -> int:
        below = [floor(name) + (name in ROOMS) for name in graph[room]]
        return max(below, default=0)

    levels: dict[int, list[str]] = {}
    for room in ROOMS:
        levels.setdefault(floor(room), []).append(room)
    return [levels[level] for level in sorted(levels, reverse=True)]


def draw(rows: list[list[str]]) -> str:
    """The picture as SVG. It uses the colours of the page that shows it."""
    widest = max(map(len, rows))
    width = 2 * MARGIN + widest * WIDTH + (widest - 1) * GAP
    height = 2 * MARGIN + len(rows) * HEIGHT + (len(rows) - 1) * GAP
    boxes = []
    for level, row in enumerate(rows):
        y = MARGIN + level * (HEIGHT + GAP)
        left = (width - len(row) * WIDTH - (len(row) - 1) * GAP) / 2
        for place, room in enumerate(row):
            x = left + place * (WIDTH + GAP)
            boxes.append(
                f'<rect x="{x:g}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef1f8" stroke="#51639c"/>'
                f'<text x="{x + WIDTH / 2:g}" y="{y + 22}" font-weight="bold">{escape(room)}</text>'
                f'<text x="{x + WIDTH / 2:g}" y="{y + 40}" font-size="11">{escape(ROOMS[room])}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="14" text-anchor="middle" fill="#1c2540">'
        f"<title>Rooms of the package, each above all that it imports</title>\n" + "\n".join(boxes) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(floors(imports())), encoding="utf-8")
