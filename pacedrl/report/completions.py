"""The sampled completions that a page holds.

They are compressed into the page as JSON, which assets/completions.js reads. Text from a model, dataset or verifier is
never read as HTML: it is JSON here, ``textContent`` there.
"""

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from pacedrl.logs import Row

Outcome = Literal["error", "none", "right", "wrong", "between"]

LONGEST_TEXT = 131_072
"""Maximum number of characters of a text that are shown; samples.jsonl holds the rest."""
FIRST_TRY = 1000
"""Number of rows that are compressed first, to see how well they compress."""


class Sample(NamedTuple):
    """A row of samples.jsonl with the numbers of its run, from 0, and of its line, from 1."""

    run: int
    line: int
    row: Row


def completions_json(runs: Mapping[str, Sequence[Row]], budget: int) -> str:
    """Return JSON, safe inside a ``<script>``, of the rows of samples.jsonl by run name, in the order of the file.

    ``budget`` is how many bytes the rows may take in the page, compressed. If they take more, a selection is shown:
    the verifier's errors first, then as many right as wrong completions, spread over the steps.
    """
    samples = [Sample(run, n, row) for run, rows in enumerate(runs.values()) for n, row in enumerate(rows, start=1)]
    shown, packed = _as_many_as_fit(_in_order_of_choice(samples), budget)
    data = {
        "runs": list(runs),
        "shown": len(shown),
        "total": len(samples),
        "errors": [sum(outcome(sample.row) == "error" for sample in part) for part in (shown, samples)],
        "gzip": packed.decode("ascii"),
    }
    return json.dumps(data).replace("<", "\\u003c")


def outcome(row: Row) -> Outcome:
    """Return the verdict in a word: "right" is a reward of 1, "wrong" of 0, "none" neither a reward nor an error."""
    if row.get("error") is not None:
        return "error"
    reward = _number(row.get("reward"))
    if reward is None:
        return "none"
    return "right" if reward == 1 else "wrong" if reward == 0 else "between"


def _in_order_of_choice(samples: Sequence[Sample]) -> list[Sample]:
    """Sort so that any first n rows hold errors first, then equally many of each run and outcome, evenly spread."""
    kinds: dict[tuple[int, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.run, outcome(sample.row)].append(sample)
    ranked = [
        ((kind != "error", rank, *sample[:2]), sample)
        for (_, kind), members in kinds.items()
        for rank, sample in enumerate(_spread(members))
    ]
    return [sample for _, sample in sorted(ranked, key=itemgetter(0))]


def _spread(members: Sequence[Sample]) -> list[Sample]:
    """Sort so that any first n are evenly spread: by the reversed bits of their positions."""
    bits = max((len(members) - 1).bit_length(), 1)
    places = sorted(range(len(members)), key=lambda place: int(f"{place:0{bits}b}"[::-1], 2))
    return [members[place] for place in places]


def _as_many_as_fit(ordered: Sequence[Sample], budget: int) -> tuple[list[Sample], bytes]:
    """Return the first of ``ordered`` that fit in ``budget`` bytes, in the order of the logs, and their bytes.

    How many fit is estimated from how well a few compress, which is much faster than compressing a long log.
    """
    most, slack = len(ordered), 0.97
    count = min(FIRST_TRY, most)
    shown: list[Sample] = []
    packed = _packed(shown)
    while True:
        trial = sorted(ordered[:count], key=itemgetter(0, 1))
        size = len(tried := _packed(trial))
        if size <= budget:
            shown, packed = trial, tried
        else:
            most, slack = count - 1, slack * 0.9
        count = min(int(count * budget / size * slack), most)
        if count <= len(shown) or (count < most and count < 1.1 * len(shown)):
            return shown, packed


def _packed(shown: Sequence[Sample]) -> bytes:
    text = json.dumps(_columns(shown)).encode("ascii")
    return base64.b64encode(gzip.compress(text, 6, mtime=0))


def _columns(shown: Sequence[Sample]) -> dict[str, list[Any]]:
    """Arrange the rows by column, which compresses best; prompts, keys and the like are indices into ``texts``."""
    texts: list[Any] = []
    places: dict[tuple[str, str], int] = {}

    def place(value: Any) -> int:
        name = ("text", value) if isinstance(value, str) else ("other", json.dumps(value))
        if name not in places:
            places[name] = len(texts)
            texts.append(value)
        return places[name]

    columns: dict[str, list[Any]] = defaultdict(list)
    for run, n, row in shown:
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
