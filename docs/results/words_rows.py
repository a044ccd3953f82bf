"""Write SVAMP's word problems with equations as answers, for the study on words: make results-words.

    python docs/results/words_rows.py SVAMP.json FOLDER

It uses the problems solved by one operation on two integers (762 of 1,000) and writes FOLDER/warm_up.jsonl (rows 0 to
269, for words_base.py), FOLDER/train.jsonl (rows 270 to 899) and FOLDER/held_out.jsonl (rows 900 to 999). The columns
are ``prompt``, ``answer`` (in countdown's form: the two numbers and their target) and ``equation``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

ROWS = {"warm_up": range(270), "train": range(270, 900), "held_out": range(900, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svamp", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    problems = json.loads(options.svamp.read_text(encoding="utf-8"))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        written = [json.dumps(row) for i in rows if (row := one_operation(problems[i])) is not None]
        (options.folder / f"{name}.jsonl").write_text("\n".join(written) + "\n", encoding="utf-8")


def one_operation(problem: dict[str, Any]) -> dict[str, Any] | None:
    """Return the problem as a row, or None if it takes several operations or numbers other than integers."""
    parts = problem["Equation"].strip("() ").split()
    if len(parts) != 3 or any(float(number) % 1 for number in (parts[0], parts[2], problem["Answer"])):
        return None
    left, right = int(float(parts[0])), int(float(parts[2]))
    question = f"{problem['Body']}. {problem['Question']} Answer with an equation."
    return {
        "prompt": [{"role": "user", "content": question}],
        "answer": {"numbers": [left, right], "target": int(problem["Answer"])},
        "equation": f"{left} {parts[1]} {right}",
    }


if __name__ == "__main__":
    main()
