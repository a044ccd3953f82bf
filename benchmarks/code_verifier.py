"""Measure code verdicts per second, and the share of their time that starting sandboxes takes.

    python benchmarks/code_verifier.py                                  # three small tasks
    python benchmarks/code_verifier.py --data HumanEvalPlus.jsonl.gz    # rows of a file with their canonical solutions
    python benchmarks/code_verifier.py --sandbox rlimits

Each verdict is timed as a whole, in a verifier process. The time to start a sandbox is the time of verdicts on trivial
tests.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.verifier import CodeSettings, code_reward
from pacedrl.types import Prompt

Item = tuple[Prompt, str, CodeSettings]

NOTHING = (Prompt("key", "nothing", "", None, {"test_list": ["assert f() is None"]}), "def f(): pass")
PROGRAM = {"inputs": [f"{n}\n" for n in range(20)], "outputs": [str(n * n) for n in range(20)]}
SMALL = [
    (Prompt("key", "program, 20 runs", "", PROGRAM, {}), "print(int(input()) ** 2)"),
    (
        Prompt("key", "function, 3 calls", "", None, {"test_list": [f"assert f({n}) == {n * n}" for n in range(3)]}),
        "def f(n):\n    return n * n",
    ),
    (
        Prompt("key", "function, 1000 calls", "", None, {"test": "assert [f(n) for n in range(1000)][-1] == 998001"}),
        "def f(n):\n    return n * n",
    ),
]


def timed(item: Item) -> tuple[float, float | None]:
    """Return the seconds and the reward, which is None if the tests cannot be used."""
    start = time.perf_counter()
    try:
        reward: float | None = code_reward(*item)
    except JudgeError:
        reward = None
    return time.perf_counter() - start, reward


def read(path: Path, limit: int) -> list[tuple[Prompt, str]]:
    """Read rows of HumanEval, HumanEval+ or MBPP+ with their canonical solutions."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:limit]
    return [
        (Prompt("key", path.name, row["prompt"], None, {**row, "prompt": row["prompt"]}), row["canonical_solution"])
        for row in rows
    ]


def measure(name: str, pairs: list[tuple[Prompt, str]], settings: CodeSettings, workers: int) -> None:
    """Time verdicts on these completions and print the figures."""
    items = [(*pair, settings) for pair in pairs]
    with ProcessPoolExecutor(workers) as pool:
        starts = [seconds for seconds, _ in pool.map(timed, [(*NOTHING, settings)] * 20 * workers)][workers:]
        begin = time.perf_counter()
        results = list(pool.map(timed, items))
        took = time.perf_counter() - begin
    seconds = [seconds for seconds, _ in results]
    starting = statistics.median(starts)
    passed = sum(reward == 1.0 for _, reward in results)
    print(
        f"{name:22} {workers} at once: {len(items) / took:5.1f} verdicts/s, median {statistics.median(seconds):.3f} s, "
        f"start {starting:.3f} s = {min(starting * len(items) / sum(seconds), 1.0):4.0%}; {passed} right"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--limit", type=int, default=100, help="rows of each file")
    parser.add_argument("--sandbox", choices=["bubblewrap", "rlimits"], default="bubblewrap")
    arguments = parser.parse_args()
    settings = CodeSettings(arguments.sandbox)
    sandbox.check(settings.sandbox)
    for workers in (1, 2):
        for prompt, text in SMALL:
            measure(prompt.task, [(prompt, text)] * 40, settings, workers)
        for path in arguments.data:
            measure(path.name, read(path, arguments.limit), settings, workers)


if __name__ == "__main__":
    main()
