"""What each choice in paced_plus is worth: one change at a time, on a skewed pool of the built-in skills.

    python benchmarks/paced_plus.py                      # about 20 minutes on 2 cores
    python benchmarks/paced_plus.py --only grpo,paced    # some of the variants

Most prompts of the pool are nearly solved (copy) or hopeless (add), one in ten is of a skill that can improve. What
is measured is held-out pass@1 on the skills that can improve, averaged over training and at its end. Seeds, pool and
held-out prompts are for development: results to be reported need others. Writes benchmarks/paced_plus.json; finished
runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "paced_plus"
IMPROVABLE = ["reverse", "sort", "negate", "rotate", "double"]
SEEDS = (100, 101, 102)
CONFIG: dict[str, Any] = {
    "run": {"steps": 60},
    "data": {
        "train": [
            {"source": "skills", "name": "solved", "options": {"skills": ["copy"], "size": 460, "seed": 100}},
            {"source": "skills", "name": "hopeless", "options": {"skills": ["add"], "size": 460, "seed": 100}},
            {"source": "skills", "name": "improvable", "options": {"skills": IMPROVABLE, "size": 104, "seed": 100}},
        ],
        "eval": [
            {
                "source": "skills",
                "name": "held",
                "split": "test",
                "options": {"skills": IMPROVABLE, "size": 160, "seed": 100},
            }
        ],
    },
    "sampling": {"prompts_per_step": 32, "group_size": 8, "max_prompt_tokens": 64, "max_new_tokens": 16},
    "optimizer": {"learning_rate": 2e-4},
    "replay": {"capacity": 32, "admit": 16},
    "eval": {"every": 15, "samples": 4, "k": [1, 4]},
}
PLUS = ["recipe=paced_plus"]
VARIANTS: dict[str, list[str]] = {
    "grpo": ["recipe=grpo"],
    "mopps": ["recipe=mopps"],
    "tb": ["recipe=tb"],
    "paced": ["recipe=paced"],
    "oracle": ["recipe=oracle"],
    "paced_plus": PLUS,
    "prior_strength 1": [*PLUS, "estimator.prior_strength=1"],
    "prior_strength 16": [*PLUS, "estimator.prior_strength=16"],
    "prior_strength learned": [*PLUS, "estimator.prior_strength=null"],
    "discount 0.3": [*PLUS, "estimator.discount=0.3"],
    "discount 0.9": [*PLUS, "estimator.discount=0.9"],
    "explore 0": [*PLUS, "selection.explore_fraction=0"],
    "explore 0.3": [*PLUS, "selection.explore_fraction=0.3"],
    "cooldown 0": [*PLUS, "selection.cooldown_steps=0"],
    "nearest without draw": [*PLUS, "selection.method=nearest"],
    "learnability": [*PLUS, "selection.method=learnability"],
    "learned log Z alone": [*PLUS, "objective.log_z=learned"],
    "group mean alone": [*PLUS, "objective.log_z=group_mean"],
    "with replay": [*PLUS, "replay.enabled=true"],
}


def train(variant: str, seed: int) -> Path:
    """Run to the end, or go on, or do nothing if it is complete."""
    run = RUNS / variant.replace(" ", "_") / f"seed{seed}"
    config = RUNS / "config.yaml"
    settings = [f"run.seed={seed}", f"run.dir={run}", *VARIANTS[variant]]
    command = [str(Path(sys.executable).parent / "pacedrl"), "train", str(config), *settings]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{variant}, seed {seed}: {done.stderr}")
    print(f"done: {variant}, seed {seed}", flush=True)
    return run


def rows(run: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / log).read_text().splitlines()]


def figures(runs: list[Path]) -> dict[str, Any]:
    """Per seed: pass@1, mean of the evaluations after the first, and at the end; the estimate's error; mixed groups."""
    curves = [[row["held/pass@1"] for row in rows(run, "eval.jsonl")] for run in runs]
    steps = [rows(run, "metrics.jsonl") for run in runs]
    errors = [[row["accuracy/mae"] for row in seed if row["accuracy/mae"] is not None] for seed in steps]
    return {
        "mean_pass@1": [round(float(np.mean(curve[1:])), 4) for curve in curves],
        "final_pass@1": [round(curve[-1], 4) for curve in curves],
        "estimate_mae": [round(float(np.mean(seed)), 4) if seed else None for seed in errors],
        "mixed_groups": [round(float(np.mean([row["reward/mixed_groups"] for row in seed])), 4) for seed in steps],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated variants")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(VARIANTS)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    jobs = [(name, seed) for seed in SEEDS for name in names]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = dict(zip(jobs, pool.map(lambda job: train(*job), jobs), strict=True))
    table = {name: figures([runs[name, seed] for seed in SEEDS]) for name in names}
    if not options.only:
        machine = f"{platform.machine()}, {platform.system()}, CPU only"
        result = {"script": "benchmarks/paced_plus.py", "machine": machine, "seeds": list(SEEDS), "variants": table}
        (ROOT / "benchmarks" / "paced_plus.json").write_text(json.dumps(result, indent=2) + "\n")
    print("| variant | pass@1 over training (range) | at the end (range) | error of the estimate | mixed groups |")
    print("|---|---|---|---|---|")
    for name, row in table.items():
        cells = [
            f"{np.mean(row[column]):.3f} ({min(row[column]):.3f}–{max(row[column]):.3f})"
            for column in ("mean_pass@1", "final_pass@1")
        ]
        error = "" if row["estimate_mae"][0] is None else f"{np.mean(row['estimate_mae']):.3f}"
        print(f"| {name} | {' | '.join(cells)} | {error} | {np.mean(row['mixed_groups']):.2f} |")


if __name__ == "__main__":
    main()
