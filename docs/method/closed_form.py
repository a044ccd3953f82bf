"""Draw estimates and intervals against the truth on prompts of a real model that the estimators have not seen.

    python docs/method/closed_form.py                                         # redraw closed_form.svg
    python docs/method/closed_form.py --measure runs/results/estimates/words  # first rewrite closed_form.json

FOLDER is what docs/results/estimates_data.py wrote about SmolLM2 on SVAMP's equations (`make results-estimates`). The
estimators observe groups of 8 completions of 256 of its 482 prompts in one random order, 8 prompts per step; the figure
shows the others. (docs/results/estimates.md has means over five orders.) The truth is the mean of 64 other completions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pacedrl.method import AccuracyEstimator, ClosedFormPartition, LogPartition, MlpPartition
from pacedrl.method.estimator import spearman
from pacedrl.report.style import BLUE, FILE, ORANGE, new_grid, save, styled

HERE = Path(__file__).parent
OBSERVED, BATCH, GROUP = 256, 8, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER")
    folder = parser.parse_args().measure
    file = HERE / "closed_form.json"
    if folder is not None:
        file.write_text(json.dumps(measure(folder), indent=1) + "\n", encoding="utf-8")
    draw(json.loads(file.read_text(encoding="utf-8")), HERE / "closed_form.svg")


def measure(folder: Path) -> dict[str, Any]:
    """Return the truth of the prompts not observed, and each estimator's means and 90% intervals for them."""
    layers = {layer: torch.from_numpy(np.load(folder / f"{layer}.npy")) for layer in ("middle", "last")}
    rng = np.random.default_rng(300)
    reward_NS = rng.permuted(np.load(folder / "rewards.npy"), axis=1)
    order_N = rng.permutation(len(reward_NS))
    torch.manual_seed(0)
    partitions = {
        "MLP": MlpPartition(LogPartition(layers["last"], 0.05), layers["last"]),
        "closed form": ClosedFormPartition(layers["middle"], discount=1.0),  # the policy does not move
    }
    unseen = np.sort(order_N[OBSERVED:])
    truth = reward_NS[unseen, GROUP:].mean(axis=1)
    results: dict[str, Any] = {"truth": truth.round(4).tolist()}
    for name, partition in partitions.items():
        for step, start in enumerate(range(0, OBSERVED, BATCH)):
            rows_P = order_N[start : start + BATCH]
            reward_B = torch.from_numpy(reward_NS[rows_P, :GROUP].ravel()).float()
            partition.fit(rows_P.repeat(GROUP), reward_B, torch.zeros(len(reward_B)), seed=step)
        estimator = AccuracyEstimator("partition", len(reward_NS), partition, None, 1.0)
        mean = estimator.mean(unseen)
        low, high = estimator.beliefs(unseen).interval(0.9)
        results[name] = {
            "error": round(float(np.abs(mean - truth).mean()), 3),
            "rank": round(spearman(mean, truth), 2),
            **{part: values.round(4).tolist() for part, values in (("mean", mean), ("low", low), ("high", high))},
        }
    return results


@styled(FILE)
def draw(results: dict[str, Any], path: Path) -> None:
    figure, (panels,) = new_grid(7.4, 3.4, 1, 2, sharex=True, sharey=True, layout="constrained")
    truth = np.array(results["truth"])
    for panel, name, color in zip(panels, ("MLP", "closed form"), (ORANGE, BLUE), strict=True):
        found = results[name]
        mean, low, high = (np.array(found[part]) for part in ("mean", "low", "high"))
        panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        if (high > low).any():
            panel.vlines(truth, low, high, color=color, alpha=0.15, linewidth=1)
        panel.plot(truth, mean, ".", color=color, markersize=4)
        title = f"{name}: error {found['error']:.3f}, rank correlation {found['rank']:.2f}"
        panel.set_title(title, loc="left", fontsize=9)
        panel.set(xlabel="accuracy of 64 completions", xlim=(-0.02, 0.82), ylim=(-0.25, 0.82))
    panels[0].set_ylabel("estimate and 90% interval")
    save(figure, path)


if __name__ == "__main__":
    main()
