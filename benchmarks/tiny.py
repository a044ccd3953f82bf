"""Measure rollouts per second on the built-in tiny model with pacedrl and TRL's GRPOTrainer, training included.

    python benchmarks/tiny.py                # 20 steps of 32 prompts × 8 completions on each side: some minutes

The data are the built-in skills, with at most 16 new tokens; completions end by themselves. TRL runs twice: with its
defaults (micro-batches of 8 sequences, gradient checkpointing), and with settings that suit so small a model (all 256
sequences of a step in one micro-batch, no checkpointing), as pacedrl does. Prints what `benchmarks/step.py` prints.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from step import Work, compare

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.tasks.skills import skill_rows

TRL: dict[str, dict[str, Any]] = {
    "as it comes": {"trl_batch": 8, "checkpointing": True},
    "tuned": {"trl_batch": 256, "checkpointing": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
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
        found = {}
        for name, settings in TRL.items():
            print(f"\nTRL {name}: {settings}")
            found[name] = compare(replace(work, **settings))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
