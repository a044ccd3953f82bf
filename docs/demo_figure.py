"""Train the demo and a control with several seeds; draw docs/images/demo.png and write docs/demo_results.json.

make demo-figure
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEEDS = (3, 4, 5)  # 0 to 2 were used to choose the demo's settings
UNIFORM = ("recipe=tb",)
"""The control: the paper's objective on uniformly drawn prompts, without replay."""
ROOT = Path(__file__).resolve().parent
COLOURS = {  # Okabe and Ito, safe for colour-blind readers
    "copy": "#000000",
    "reverse": "#E69F00",
    "sort": "#56B4E9",
    "negate": "#009E73",
    "rotate": "#0072B2",
    "double": "#D55E00",
    "add": "#CC79A7",
}


def rows(run: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / log).read_text().splitlines()]


def train(name: str, seed: int, *overrides: str) -> Path:
    """Run or resume the demo; a complete run is left as it is."""
    run = Path(f"runs/{name}-seed{seed}")
    settings = [f"run.seed={seed}", f"run.dir={run}", "eval.every=10", *overrides]
    subprocess.run([Path(sys.executable).parent / "pacedrl", "train", "examples/demo.yaml", *settings], check=True)
    return run


def results(runs: list[Path], controls: list[Path]) -> dict[str, Any]:
    """Return each seed's held-out pass@1 and pass@8 before and after, the control's means, rollouts, and machine."""
    evals = [rows(run, "eval.jsonl") for run in runs]
    steps = [rows(run, "metrics.jsonl") for run in runs]
    return {
        "script": "docs/demo_figure.py",
        "config": "examples/demo.yaml",
        "seeds": list(SEEDS),
        "machine": f"{platform.machine()}, {platform.system()}, CPU only",
        "rollouts": [seed[-1]["rollouts/generated"] for seed in evals],
        "train_seconds": [round(sum(step["time/step"] for step in seed), 1) for seed in steps],
        "estimate_mae_last_20_steps": [round(np.mean([s["accuracy/mae"] for s in seed[-20:]]), 4) for seed in steps],
        "mean_pass@1": {
            "before": [mean_pass_at_1(seed[0]) for seed in evals],
            "after": [mean_pass_at_1(seed[-1]) for seed in evals],
            "after_uniform": [mean_pass_at_1(rows(run, "eval.jsonl")[-1]) for run in controls],
        },
        "figures": {
            f"{skill}/{name}": {
                "before": [round(seed[0][f"{skill}/{name}"], 4) for seed in evals],
                "after": [round(seed[-1][f"{skill}/{name}"], 4) for seed in evals],
            }
            for skill in COLOURS
            for name in ("pass@1", "pass@8")
        },
    }


def mean_pass_at_1(evaluation: dict[str, Any]) -> float:
    """Return the mean pass@1 over the skills."""
    return round(float(np.mean([evaluation[f"{skill}/pass@1"] for skill in COLOURS])), 4)


def draw(runs: list[Path], path: Path) -> None:
    evals, steps = [rows(run, "eval.jsonl") for run in runs], [rows(run, "metrics.jsonl") for run in runs]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    rollouts = [row["rollouts/generated"] for row in evals[0]]
    for skill, colour in COLOURS.items():
        curves = np.array([[row[f"{skill}/pass@1"] for row in seed] for seed in evals])
        left.plot(rollouts, curves.mean(axis=0), color=colour, label=skill)
        left.fill_between(rollouts, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="rollouts generated", ylabel="held-out pass@1", ylim=(-0.02, 1.02), title="What it learns")
    left.legend(ncols=4, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.04))
    x = [row["step"] for row in steps[0]]
    for name, label, colour, style in (
        ("accuracy/estimate_mean", "estimated", "#0072B2", "-"),
        ("accuracy/observed_mean", "observed", "#E69F00", "-"),
        ("accuracy/mae", "mean absolute error of the estimate", "#000000", ":"),
    ):
        curves = np.array([[row[name] for row in seed] for seed in steps])
        right.plot(x, curves.mean(axis=0), style, color=colour, label=label)
        right.fill_between(x, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.12, linewidth=0)
    right.axhline(0.5, color="grey", linewidth=0.8)
    right.set(
        xlabel="step", ylabel="accuracy of the selected prompts", ylim=(-0.02, 1.02), title="What it selects (τ = 0.5)"
    )
    right.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    runs = [train("demo", seed) for seed in SEEDS]
    controls = [train("demo-uniform", seed, *UNIFORM) for seed in SEEDS]
    (ROOT / "demo_results.json").write_text(json.dumps(results(runs, controls), indent=2) + "\n")
    draw(runs, ROOT / "images" / "demo.png")


if __name__ == "__main__":
    main()
