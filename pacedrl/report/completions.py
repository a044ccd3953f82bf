"""The sampled completions that a page holds.

They are compressed into the page as JSON, which assets/completions.js reads. Whatever a model, a dataset or a verifier
wrote stays data all the way: JSON here, ``textContent`` there.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pacedrl.logs import Row

RowId = tuple[int, int]
"""Number of a row's run, from 0, and of its line in samples.jsonl, from 1."""
RowOf = Callable[[RowId], Row]
Outcome = Literal["error", "none", "right", "wrong", "between"]

LONGEST_TEXT = 131_072
"""Characters of one text that are shown; samples.jsonl holds the rest."""
FIRST_TRY = 1000
"""Rows that are compressed first, to see how well they compress."""


def completions_json(runs: Mapping[str, Sequence[Row]], budget: int) -> str:
    """Return JSON, safe inside a ``<script>``, of the rows of samples.jsonl by run name, in the order of the file.

    ``budget`` is how many bytes the rows may take in the page, compressed. If they take more, a selection is shown:
    the verifier's errors first, then as many right as wrong completions, spread over the steps.
    """
    names = list(runs)
    ids = [(run, n) for run, name in enumerate(names) for n in range(1, len(runs[name]) + 1)]

    def row_of(row_id: RowId) -> Row:
        return runs[names[row_id[0]]][row_id[1] - 1]

    shown, packed = _as_many_as_fit(_in_order_of_choice(ids, row_of), row_of, budget)
    data = {
        "runs": names,
        "shown": len(shown),
        "total": len(ids),
        "errors": [sum(outcome(row_of(row_id)) == "error" for row_id in part) for part in (shown, ids)],
        "gzip": packed.decode("ascii"),
    }
    return json.dumps(data).replace("<", "\\u003c")


def outcome(row: Row) -> Outcome:
    """Return what the verifier said: right is a reward of 1, wrong of 0; none if it neither judged nor failed."""
    if row.get("error") is not None:
        return "error"
    reward = _number(row.get("reward"))
    if reward is None:
        return "none"
    return "right" if reward == 1 else "wrong" if reward == 0 else "between"


def _in_order_of_choice(ids: Sequence[RowId], row_of: RowOf) -> list[RowId]:
    """Sort so that the first rows, however many, hold all errors or as many of each run and outcome, spread evenly."""
    kinds: dict[tuple[int, str], list[RowId]] = defaultdict(list)
    for row_id in ids:
        kinds[row_id[0], outcome(row_of(row_id))].append(row_id)
    ranked = [
        (kind != "error", rank, row_id)
        for (_, kind), members in kinds.items()
        for rank, row_id in enumerate(_spread(members))
    ]
    return [row_id for *_, row_id in sorted(ranked)]


def _spread(members: Sequence[RowId]) -> list[RowId]:
    """Sort so that the first few, however many, lie evenly: by the reversed bits of their places."""
    bits = max((len(members) - 1).bit_length(), 1)
    places = sorted(range(len(members)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [members[place] for place in places]


def _as_many_as_fit(ordered: Sequence[RowId], row_of: RowOf, budget: int) -> tuple[list[RowId], bytes]:
    """Return the first rows of ``ordered`` that fit in ``budget`` bytes, in the order of the logs, and their bytes.

    How many fit is estimated from how well a few compress, which is much faster than compressing a long log.
    """
    most, slack = len(ordered), 0.97
    count = min(FIRST_TRY, most)
    shown: list[RowId] = []
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


def _packed(shown: Sequence[RowId], row_of: RowOf) -> bytes:
    text = json.dumps(_columns(shown, row_of)).encode("ascii")
    return base64.b64encode(gzip.compress(text, 6, mtime=0))


def _columns(shown: Sequence[RowId], row_of: RowOf) -> dict[str, list[Any]]:
    """Arrange the rows by column, which compresses best; columns of prompts, keys and such hold places in ``texts``."""
    texts: list[Any] = []
    places: dict[tuple[str, str], int] = {}

    def place(value: Any) -> int:
        name = ("text", value) if isinstance(value, str) else ("other", json.dumps(value))
        if name not in places:
            places[name] = len(texts)
            texts.append(value)
        return places[name]

    columns: dict[str, list[Any]] = defaultdict(list)
    for run, n in shown:
        row = row_of((run, n))
        columns["run"].append(run)
        columns["n"].append(n)
        columns["completion"].append(_text(row.get("completion")))
        columns["prompt"].append(place(_prompt(row.get("prompt"))))
        for name in ("key", "task", "answer", "error", "finish_reason"):
            columns[name].append(place(_text(row.get(name))))
        for name in ("step", "reward", "observed_accuracy", "accuracy_estimate"):
            columns[name].append(_number(row.get(name)))
        columns["parts"].append({name: _number(value) for name, value in (row.get("parts") or {}).items()})
    return {**columns, "texts": texts}


def _prompt(content: Any) -> Any:
    """Return a text, or the messages of a chat as pairs of role and text, tool calls included."""
    if not isinstance(content, list):
        return _text(content)
    parts = [[message.get("content"), message.get("tool_calls")] for message in content]
    texts = [_text("\n".join(filter(None, map(_as_text, part)))) for part in parts]
    return [[_as_text(message.get("role")), text] for message, text in zip(content, texts, strict=True)]


def _text(value: Any) -> str | None:
    """Return `_as_text`, cut if it is too long."""
    text = _as_text(value)
    if text is None or len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT:,} more characters in samples.jsonl)"


def _as_text(value: Any) -> str | None:
    """Return a text or None as it is, anything else as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any) -> float | None:
    """Round to six decimals and drop ``.0``; None for anything but a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else round(value, 6)
