"""Measure how the verifiers judge right and corrupted answers, and how EvalPlus judges the same code in the same run.

    python benchmarks/verifier_acceptance.py                  # about 6 minutes; writes verifier_acceptance.json
    python benchmarks/verifier_acceptance.py --evalplus       # also runs EvalPlus: 10 minutes

Right code consists of the canonical solutions of HumanEval, HumanEval+ and MBPP+. Corrupted code is the same with one
operator exchanged, with a fixed seed for each row. Right answers are the gold answers of GSM8K, SVAMP, MATH-500 and
DeepScaleR's subset, stated in a box. The verifiers have default settings. Seconds are wall-clock, one verdict at a
time. EvalPlus runs code without a sandbox, and its seconds are those of its ``untrusted_check`` alone. Ours are those
of verdicts for which the canonical solution's answers are cached, as they also are in EvalPlus.

EvalPlus: pip install --no-deps evalplus==0.3.1 appdirs tempdir multipledispatch wget psutil
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pacedrl.errors import JudgeError
from pacedrl.tasks.code import sandbox
from pacedrl.tasks.code.candidate import assemble
from pacedrl.tasks.code.verifier import CodeSettings, code_reward
from pacedrl.tasks.math.rewards import math_gold, math_reward

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(ROOT / "tests" / "tasks"))

from public_sets import CODE_FILES, GOLD_FILES, code_rows, gold_answers, mutated, row_prompt  # noqa: E402

Row = dict[str, Any]
Check = Callable[[str], bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evalplus", action="store_true", help="also judge HumanEval+ and MBPP+ with EvalPlus")
    parser.add_argument("--limit", type=int, help="rows of each file, for a quick look; then nothing is written")
    arguments = parser.parse_args()
    sandbox.check("bubblewrap")
    results: dict[str, Any] = {"gold_answers": {name: golds(name) for name in GOLD_FILES}, "code": {}}
    print(json.dumps(results["gold_answers"], indent=1), flush=True)
    for name in CODE_FILES:
        peer = evalplus_check if arguments.evalplus and name.endswith("_plus") else None
        results["code"][name] = code(code_rows(name)[: arguments.limit], peer)
        print(name, json.dumps(results["code"][name], indent=1), flush=True)
    if arguments.limit is None:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def golds(name: str) -> dict[str, Any]:
    """Return the number of accepted gold answers, and the refused ones."""
    answers = gold_answers(name)
    refused = [answer for answer in answers if not accepts(answer)]
    return {"rows": len(answers), "accepted": len(answers) - len(refused), "refused": refused}


def accepts(answer: str) -> bool:
    """Whether the answer is accepted as its own gold answer; False if it cannot be used as one."""
    try:
        return math_reward(answer, rf"\boxed{{{math_gold(answer)}}}") == 1.0
    except JudgeError:
        return False


def code(rows: list[Row], peer: Callable[[Row], Check] | None) -> dict[str, Any]:
    """Judge right and corrupted code, also with the peer."""
    right: dict[str, bool] = {}
    spoilt: dict[str, bool] = {}
    disagreed: list[str] = []
    seconds = {"ours": 0.0, "evalplus": 0.0}
    for seed, row in enumerate(rows):
        check = peer(row) if peer else None
        source = assemble(row["canonical_solution"], row["prompt"], row["entry_point"])
        for verdicts, text in ((right, source), (spoilt, mutated(source, seed))):
            if text is None:
                continue
            ours(row, text)  # fills the cache of the canonical solution's answers
            start = time.perf_counter()
            verdict = verdicts[row["task_id"]] = ours(row, text)
            seconds["ours"] += time.perf_counter() - start
            if check:
                start = time.perf_counter()
                same = check(text) == verdict
                seconds["evalplus"] += time.perf_counter() - start
                disagreed += [] if same else [row["task_id"] + (" spoilt" if verdicts is spoilt else "")]
    result = {
        "right": len(right),
        "right_accepted": sum(right.values()),
        "right_refused": [name for name, passed in right.items() if not passed],
        "spoilt": len(spoilt),
        "spoilt_refused": len(spoilt) - sum(spoilt.values()),
        "spoilt_accepted": [name for name, passed in spoilt.items() if passed],
        "seconds": round(seconds["ours"], 1),
    }
    if peer:
        result |= {"evalplus_disagrees": disagreed, "evalplus_seconds": round(seconds["evalplus"], 1)}
    return result


def ours(row: Row, text: str) -> bool:
    return code_reward(row_prompt(row), text, CodeSettings()) == 1.0


def evalplus_check(row: Row) -> Check:
    """Return EvalPlus' verdict as a function of a program for this row; expected outputs are computed now."""
    from evalplus.data.mbpp import mbpp_deserialize_inputs
    from evalplus.eval import PASS, untrusted_check
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    name, mbpp = row["entry_point"], row["task_id"].startswith("Mbpp")
    parts = [row["base_input"], row["plus_input"]]
    if mbpp:
        parts = [list(mbpp_deserialize_inputs(row["task_id"], part or [])) for part in parts]
    inputs = [arguments for part in parts for arguments in part]
    source = row["prompt"] + row["canonical_solution"]
    exact = mbpp and name in MBPP_OUTPUT_NOT_NONE_TASKS
    expected, took = trusted_exec(source, inputs, name, record_time=True, output_not_none=exact)

    def check(text: str) -> bool:
        dataset = "mbpp" if mbpp else "humaneval"
        return untrusted_check(dataset, text, inputs, name, expected, row["atol"], took, fast_check=True)[0] == PASS

    return check


if __name__ == "__main__":
    main()
