"""The browser of sampled completions in a run's page.

Its rows are compressed into the page and read there by assets/completions.js. Whatever a model, a dataset or a verifier
wrote is data on the whole way: JSON here, ``textContent`` there.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Row = Mapping[str, Any]
Line = tuple[int, int]
"""A row's run, by its place, and its line in samples.jsonl, from 1."""
RowOf = Callable[[Line], Row]
Verdict = Literal["error", "none", "right", "wrong", "between"]

ASSETS = Path(__file__).parent / "assets"
LONGEST_TEXT = 131_072
"""Characters of one text that are shown; what is cut off stands in samples.jsonl."""
FIRST_TRY = 1000
"""Rows that are compressed to see how well they do."""


@dataclass(frozen=True)
class Fragment:
    """A part of a page: its elements, its style and its script."""

    html: str
    css: str
    script: str


def browser(runs: Mapping[str, Sequence[Row]], budget: int) -> Fragment:
    """A browser of the rows of samples.jsonl, by run name, in the order of the file.

    ``budget`` is how many bytes the rows may take in the page, compressed. Where they take more, a choice is shown: the
    verifier's errors first, then right and wrong ones alike, spread over the steps. The page says how many of how many.
    """
    data = json.dumps(_data(runs, budget)).replace("<", "\\u003c")
    markup = (ASSETS / "completions.html").read_text(encoding="utf-8")
    return Fragment(
        html=f'{markup}<script type="application/json" id="completions-data">{data}</script>\n',
        css=(ASSETS / "completions.css").read_text(encoding="utf-8"),
        script="".join((ASSETS / name).read_text(encoding="utf-8") for name in ("texts.js", "completions.js")),
    )


def verdict(row: Row) -> Verdict:
    """What the verifier said: right is a reward of 1, wrong of 0; none where it neither judged nor failed."""
    if row.get("error") is not None:
        return "error"
    reward = _number(row.get("reward"))
    if reward is None:
        return "none"
    return "right" if reward == 1 else "wrong" if reward == 0 else "between"


def text_of(value: Any) -> str | None:
    """A text as it is, None as None, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(runs: Mapping[str, Sequence[Row]], budget: int) -> dict[str, Any]:
    """What completions.js reads."""
    names = list(runs)
    lines = [(run, n) for run, name in enumerate(names) for n in range(1, len(runs[name]) + 1)]

    def row_of(line: Line) -> Row:
        return runs[names[line[0]]][line[1] - 1]

    ordered = _most_wanted_first(lines, row_of)
    shown, packed = _as_many_as_fit(ordered, row_of, budget)
    errors = sum(verdict(row_of(line)) == "error" for line in shown)
    all_errors = sum(verdict(row_of(line)) == "error" for line in lines)
    return {
        "runs": names,
        "shown": len(shown),
        "total": len(lines),
        "errors": [errors, all_errors],
        "gzip": packed.decode("ascii"),
    }


def _most_wanted_first(lines: Sequence[Line], row_of: RowOf) -> list[Line]:
    """Errors, then the others; of every run and verdict alike many, and any number of them spread over its steps."""
    kinds: dict[tuple[int, str], list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line[0], verdict(row_of(line))].append(line)
    ranked = [
        (kind != "error", rank, line)
        for (_, kind), members in kinds.items()
        for rank, line in enumerate(_spread(members))
    ]
    return [line for *_, line in sorted(ranked)]


def _spread(members: Sequence[Line]) -> list[Line]:
    """In such an order that the first few, however many, lie evenly: by the reversed bits of their places."""
    bits = max((len(members) - 1).bit_length(), 1)
    places = sorted(range(len(members)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [members[place] for place in places]


def _as_many_as_fit(ordered: Sequence[Line], row_of: RowOf, budget: int) -> tuple[list[Line], bytes]:
    """The first of ``ordered``, back in the order of the logs, and what they are in the page: at most ``budget`` bytes.

    How many fit is found from how well a few compress, which is much faster than compressing all of a long log.
    """
    most, slack = len(ordered), 0.97
    count = min(FIRST_TRY, most)
    shown: list[Line] = []
    packed = _packed(shown, row_of)
    while True:
        trial = sorted(ordered[:count])
        size = len(tried := _packed(trial, row_of))
        if size <= budget:
            shown, packed = trial, tried
        else:
            most, slack = count - 1, slack * 0.9
        count = min(int(count * budget / size * slack), most)
        if count <= len(shown) or (count < most and count < 1.1 * len(shown)):
            return shown, packed


def _packed(shown: Sequence[Line], row_of: RowOf) -> bytes:
    text = json.dumps(_columns(shown, row_of)).encode("ascii")
    return base64.b64encode(gzip.compress(text, 6, mtime=0))


def _columns(shown: Sequence[Line], row_of: RowOf) -> dict[str, list[Any]]:
    """Column by column, which compresses best; what recurs (prompts, keys, answers) is a place in ``texts``."""
    texts: list[Any] = []
    places: dict[tuple[str, str], int] = {}

    def place(value: Any) -> int:
        name = ("text", value) if isinstance(value, str) else ("other", json.dumps(value))
        if name not in places:
            places[name] = len(texts)
            texts.append(value)
        return places[name]

    columns: dict[str, list[Any]] = defaultdict(list)
    for line in shown:
        row = row_of(line)
        columns["run"].append(line[0])
        columns["n"].append(line[1])
        columns["completion"].append(_cut(text_of(row.get("completion"))))
        columns["prompt"].append(place(_prompt(row.get("prompt"))))
        for name in ("key", "task", "answer", "error", "finish_reason"):
            columns[name].append(place(_cut(text_of(row.get(name)))))
        for name in ("step", "reward", "observed_accuracy", "accuracy_estimate"):
            columns[name].append(_number(row.get(name)))
        columns["parts"].append({name: _number(value) for name, value in (row.get("parts") or {}).items()})
    return {**columns, "texts": texts}


def _prompt(content: Any) -> Any:
    """A text, or the messages of a chat as pairs of role and text."""
    if not isinstance(content, list):
        return _cut(text_of(content))
    return [[text_of(message.get("role")), _cut(_said(message))] for message in content]


def _said(message: Mapping[str, Any]) -> str:
    """The text of a message, and the tool calls below it."""
    parts = (text_of(message.get(name)) for name in ("content", "tool_calls"))
    return "\n".join(filter(None, parts))


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more characters in samples.jsonl)"


def _number(value: Any) -> float | None:
    """Six decimals, without .0; None for what is no finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 6)
