"""Rollouts a second on the built-in tiny model, ours beside TRL's GRPOTrainer, sampling and training together.

    python benchmarks/tiny.py                # 20 steps of 32 prompts × 8 completions on each side: some minutes

The skills that ship with the package, at most 16 new tokens, completions end when they end; TRL takes all 256 sequences
of a step as one micro-batch. Prints what `benchmarks/step.py` prints.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from step import Work, compare

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.tasks.skills import skill_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        Policy.load(ModelConfig(), torch.device("cpu")).save(model)
        rows = skill_rows(size=32 * (options.steps + 1), seed=7)
        work = Work(
            model=model,
            rows=[{"prompt": row["prompt"], "answer": row["answer"]} for row in rows],
            prompts=32,
            completions=8,
            new_tokens=16,
            forced=False,
            steps=options.steps,
            tokens_per_micro_batch=16384,
            trl_batch=256,
            learning_rate=2e-4,
        )
        compare(work)


if __name__ == "__main__":
    main()
