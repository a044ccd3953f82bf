"""Count what the runs of the study on words trained on, and the operations in their answers: make results-words.

    python docs/results/words_seen.py runs/results/words

For each run of the comparison it counts the problems drawn, the distinct ones, the draws of the most frequent one, and
the generated completions that were trained on. It computes Spearman's correlation between the estimates and the
observed accuracies of a step's prompts, averaged over steps, and the share of each operation (the first in the text)
among the completions in samples.jsonl of the last ten steps. It writes words_seen.yaml beside this file, which the page
quotes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

LAST_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    folder = parser.parse_args().comparison
    results = json.loads((folder / "results.json").read_text())
    seen = {
        f"{name}/{seed}": summary(folder / "runs" / name / f"seed{seed}")
        for name, variant in results["variants"].items()
        for seed in variant["runs"]
    }
    (Path(__file__).parent / "words_seen.yaml").write_text(yaml.safe_dump(seen, sort_keys=False))
    for run, values in seen.items():
        print(run, values)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(run: Path) -> dict[str, Any]:
    drawn = Counter(key for row in rows(run / "groups.jsonl") for key in row["keys"])
    samples = rows(run / "samples.jsonl")
    last = max(row["step"] for row in samples)
    shown = [row["completion"] for row in samples if row["step"] > last - LAST_STEPS]
    steps = rows(run / "metrics.jsonl")
    ranks = [row["accuracy/spearman"] for row in steps]
    known = [value for value in ranks if value is not None]
    signs = Counter(match[0] if (match := re.search(r"[-+*/]", text)) else "none" for text in shown)
    return {
        "draws": drawn.total(),
        "different": len(drawn),
        "commonest_drawn": max(drawn.values()),
        "generated": steps[-1]["rollouts/generated"],
        "trained_fresh": round(steps[-1]["rollouts/trained"] - sum(row["replay/trained"] for row in steps)),
        "rank_correlation": round(sum(known) / len(known), 3) if known else None,
        "answers": {sign: round(count / len(shown), 3) for sign, count in sorted(signs.items())},
    }


if __name__ == "__main__":
    main()
