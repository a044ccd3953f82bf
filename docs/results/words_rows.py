"""SVAMP's word problems as plain text after two answered ones, for the results on words: make results-words.

    python docs/results/words_rows.py SVAMP.json FOLDER

writes FOLDER/train.jsonl (rows 0 to 699) and FOLDER/held_out.jsonl (rows 920 to 983), columns ``prompt`` and
``answer``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROWS = {"train": range(700), "held_out": range(920, 984)}
ANSWERED = [
    ("A pen costs 5 dollars. A book costs 12 dollars more. How much does the book cost?", "17"),
    ("There were 28 birds in a tree and 9 of them flew away. How many birds are left?", "19"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svamp", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    problems = json.loads(options.svamp.read_text(encoding="utf-8"))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        lines = [json.dumps({"prompt": prompt(problems[i]), "answer": problems[i]["Answer"]}) for i in rows]
        (options.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prompt(problem: dict[str, Any]) -> str:
    """The answered problems, then this one."""
    answered = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in ANSWERED)
    return f"{answered}Question: {problem['Body']}. {problem['Question']}\nAnswer:"


if __name__ == "__main__":
    main()
