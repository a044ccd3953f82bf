"""Public data sets that tests and benchmarks read if they are present, and wrong programs made from right ones."""

from __future__ import annotations

import ast
import gzip
import json
import random
from pathlib import Path
from typing import Any

from pacedrl.types import Prompt

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CODE_FILES = {
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "humaneval_plus": "humaneval_plus/HumanEvalPlus.jsonl.gz",
    "mbpp_plus": "mbpp_plus/MbppPlus.jsonl.gz",
}
GOLD_FILES = {  # rows, and the gold answers that cannot be judged against: one empty, one with brackets left open
    "gsm8k/train.jsonl": (7473, 0),
    "gsm8k/test.jsonl": (1319, 0),
    "svamp/SVAMP.json": (1000, 0),
    "one_shot_rlvr/dsr_sub.parquet": (1209, 2),
    "one_shot_rlvr/math500.parquet": (500, 0),
}

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.USub: ast.UAdd,
}  # fmt: skip


def code_rows(dataset: str) -> list[dict[str, Any]]:
    """Read the rows of one of ``CODE_FILES``. Raises FileNotFoundError if the file is absent."""
    with gzip.open(DATA / CODE_FILES[dataset], "rt", encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def row_prompt(row: dict[str, Any]) -> Prompt:
    return Prompt("key", "task", row["prompt"], None, {key: row[key] for key in row if key != "prompt"})


def gold_answers(name: str) -> list[str]:
    """Read the gold answers of one of ``GOLD_FILES``. Raises FileNotFoundError, and ImportError without pyarrow."""
    path = DATA / name
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return [row["reward_model"]["ground_truth"] for row in pyarrow.parquet.read_table(path).to_pylist()]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return [row["Answer"] for row in json.loads(text)]
    return [json.loads(line)["answer"] for line in text.splitlines()]


def mutated(source: str, seed: int) -> str | None:
    """Return the source with one operator exchanged for another, or None if it has no operator."""
    tree = ast.parse(source)
    places = []
    for node in ast.walk(tree):
        if type(getattr(node, "op", None)) in SWAPS:
            places.append(lambda node=node: setattr(node, "op", SWAPS[type(node.op)]()))
        for n, op in enumerate(getattr(node, "ops", [])):
            if type(op) in SWAPS:
                places.append(lambda node=node, n=n, op=op: node.ops.__setitem__(n, SWAPS[type(op)]()))
    if not places:
        return None
    random.Random(seed).choice(places)()
    return ast.unparse(tree)
