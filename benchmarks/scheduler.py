"""Measure how the time and memory of selection, observation and replay grow with the number of prompts.

    python benchmarks/scheduler.py              # 10^4, 10^5 and 10^6 prompts; some minutes, 4 GB of disk
    python benchmarks/scheduler.py --sizes 10000,100000 --steps 3

Synthetic prompts have 1,536 features (the hidden size of a 1.5B model) in a memory-mapped float16 file, as in a run. A
step is 128 prompts of 8 completions, with 64 of 128 replayed. log Z is an MLP or in closed form. In closed form,
prompts are selected nearest to 0.5, by one joint draw, or from 4 times as many candidates with the variance of each. A
run first spends ``prepare`` once, on the features and the first estimates. "Peak" is the largest growth of the
process's own memory without the mapped file, sampled every tenth of a second. Prints medians over the steps and the
growth from one size to the next; the paper's steps take 308 to 1,086 seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pacedrl.method import DifficultyScheduler, Rollouts

PROMPTS, COMPLETIONS, TOKENS = 128, 8, 512
PAPER_STEP_S = 308.0
WAYS: dict[str, dict[str, Any]] = {
    "MLP": {"partition": "mlp"},
    "closed form": {"partition": "closed_form"},
    "closed form, joint draw": {"partition": "closed_form", "selection": "thompson"},
    "closed form, candidates": {
        "partition": "closed_form",
        "estimator": "combined",
        "prior_strength": None,
        "selection": "learnability",
        "candidates": 4,
    },
}
PHASES = ("prepare", "select", "observe", "replay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--features", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    context = multiprocessing.get_context("spawn")
    everything: dict[str, dict[int, dict[str, float]]] = {name: {} for name in WAYS}
    for name, way in WAYS.items():
        print(
            f"\n{name}\n{'prompts':>10}"
            + "".join(f"{phase:>12}" for phase in PHASES)
            + f"{'step share':>12}{'peak':>10}"
        )
        before: dict[str, float] | None = None
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "embeddings.npy"
                write_embeddings(path, size, options.features)
                with context.Pool(1) as pool:  # its own process, so that only this size's memory counts
                    found = watched(pool, (path, way, options.steps))
            cells = "".join(f"{found[phase]:>10.3f} s" for phase in PHASES)
            share = sum(found[phase] for phase in PHASES[1:]) / PAPER_STEP_S
            print(f"{size:>10,}{cells}{share:>11.3%}{found['peak'] / 2**20:>7.0f} MB")
            if before is not None:
                print(f"{'growth':>10}" + "".join(f"{found[p] / max(before[p], 1e-9):>11.1f}×" for p in PHASES))
            before = everything[name][size] = found
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


def write_embeddings(path: Path, prompts: int, features: int) -> None:
    """Write features of sixteen factors, noise, and a large offset such as hidden states have."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(16, features)).astype(np.float32)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(prompts, features))
    for start in range(0, prompts, 8192):
        rows = min(8192, prompts - start)
        factors = rng.normal(size=(rows, 16)).astype(np.float32)
        noise = rng.normal(size=(rows, features)).astype(np.float32)
        file[start : start + rows] = 10.0 + factors @ mixing + noise
    file.flush()


def watched(pool: Pool, work: tuple[Path, dict[str, Any], int]) -> dict[str, float]:
    """Run `measure` in the pool's process and add the largest growth of its memory in bytes."""
    process = pool.apply(os.getpid)
    before = peak = own_memory(process)
    result = pool.apply_async(measure, work)
    while not result.ready():
        peak = max(peak, own_memory(process))
        result.wait(0.1)
    return result.get() | {"peak": float(peak - before)}


def own_memory(process: int) -> int:
    """Return the process's memory in bytes, without mapped files."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def measure(path: Path, way: dict[str, Any], steps: int) -> dict[str, float]:
    """Return the median seconds of each phase over the steps."""
    torch.manual_seed(0)
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    begin = time.perf_counter()
    keys = [f"{i:016x}" for i in range(len(mapped))]
    scheduler = DifficultyScheduler(keys, mapped, **way)
    scheduler.accuracy_estimates()
    seconds: dict[str, list[float]] = {"prepare": [time.perf_counter() - begin]}
    rng = np.random.default_rng(1)
    for _ in range(steps + 1):
        clock = time.perf_counter()
        chosen = scheduler.select(PROMPTS)
        seconds.setdefault("select", []).append(time.perf_counter() - clock)
        clock = time.perf_counter()
        scheduler.replay()
        seconds.setdefault("replay", []).append(time.perf_counter() - clock)
        names = [key for key in chosen for _ in range(COMPLETIONS)]
        ids, logprobs = [[1] * TOKENS] * len(names), [[-0.5] * TOKENS] * len(names)
        rollouts = Rollouts(names, rng.integers(0, 2, len(names)).astype(float), 0.0, ids, logprobs)
        clock = time.perf_counter()
        scheduler.observe(rollouts)
        seconds.setdefault("observe", []).append(time.perf_counter() - clock)
    # The first step is not counted: its estimates were computed while preparing.
    return {phase: float(np.median(values[-steps:])) for phase, values in seconds.items()}


if __name__ == "__main__":
    main()
