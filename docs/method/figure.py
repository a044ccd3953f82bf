"""Draws the figure of docs/method.md from examples/without_llm.py, which enumerates accuracy, KL and log Z.

    python docs/method/figure.py              # redraw figure.svg from figure.json
    python docs/method/figure.py --measure    # first measure figure.json again (three minutes on a core)

Shapes: _N prompts, _S all completions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from pacedrl.lab.plots import pyplot, save

HERE = Path(__file__).resolve().parent
PROMPTS, SEED = 192, 0
STEPS = (0, 5, 10, 20, 40, 80, 160)
SELECTIONS = {"uniform": "uniform", "nearest": "nearest to 0.5"}
BETA = 0.05
BETAS, BETA_STEPS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0), 80
FROZEN = (0.05, 0.2, 0.5, 1.0)
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        (HERE / "figure.json").write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    draw(json.loads((HERE / "figure.json").read_text(encoding="utf-8")), HERE / "figure.svg")


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("without_llm", HERE.parents[1] / "examples/without_llm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure() -> dict[str, Any]:
    """Return all data of the figure."""
    runs = {name: [after(steps, name, BETA) for steps in STEPS] for name in SELECTIONS}
    last = runs["uniform"][-1]
    return {
        "accuracy": last["accuracy"],
        "estimate": last["estimate"],
        "over_training": {name: [_errors(run) for run in points] for name, points in runs.items()},
        "over_beta": [_errors(after(BETA_STEPS, "uniform", beta)) for beta in BETAS],
        "frozen": frozen(),
    }


def after(steps: int, selection: str, beta: float) -> dict[str, Any]:
    """Return every prompt's exact accuracy under the last step's π_old, its β·log Z, and the step's mean β·KL."""
    lab = example()
    lab.BETA = beta
    x_NF, policy = lab.make_prompts(PROMPTS, SEED), start(lab)
    options = {"selection": "uniform"} if selection == "uniform" else {}
    if steps == 0:  # log Z is at its prior
        return {"accuracy": _rounded(policy.enumerated(x_NF)[1]), "estimate": [0.5] * PROMPTS, "kl": 0.0}
    old, scheduler = lab.train(policy, x_NF, steps, SEED, **options)
    (log_old_NS, p_N), (log_new_NS, _) = old.enumerated(x_NF), policy.enumerated(x_NF)
    kl = beta * (log_old_NS.exp() * (log_old_NS - log_new_NS)).sum(1).mean()
    return {"accuracy": _rounded(p_N), "estimate": _rounded(scheduler.accuracy_estimates()), "kl": float(f"{kl:.3g}")}


def start(lab: ModuleType) -> Any:
    torch.manual_seed(SEED)
    return lab.Policy()


def frozen() -> dict[str, Any]:
    """Return accuracy and enumerated β·log Z against a frozen reference, the policy before training."""
    lab = example()
    x_NF = lab.make_prompts(PROMPTS, SEED)
    log_mu_NS, p_N = start(lab).enumerated(x_NF)
    reward_NS = lab.reward(x_NF[:, None], lab.EVERY_ST).double()
    exact = {str(beta): _rounded(beta * torch.logsumexp(log_mu_NS + reward_NS / beta, dim=1)) for beta in FROZEN}
    return {"accuracy": _rounded(p_N), "beta_log_z": exact}


def closed_form(p: np.ndarray, beta: float) -> np.ndarray:
    """Return β·log Z against a frozen reference of accuracy p, for rewards of 0 and 1."""
    return np.asarray(beta * np.logaddexp(np.log1p(-p), np.log(p) + 1 / beta))


def _errors(run: dict[str, Any]) -> list[float]:
    """Return mean |β·log Z − p| and β·KL."""
    return [round(float(np.abs(np.subtract(run["estimate"], run["accuracy"])).mean()), 4), run["kl"]]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


def draw(data: dict[str, Any], path: Path) -> None:
    plt = pyplot()
    figure, ((dots, training), (betas, reference)) = plt.subplots(2, 2, figsize=(7.4, 6.2))
    _diagonal(dots)
    dots.plot(data["accuracy"], data["estimate"], ".", color=BLUE, markersize=4)
    dots.set(xlabel="exact accuracy of π_old", ylabel="learned β·log Z")
    dots.set_title(f"a  {PROMPTS} prompts after {STEPS[-1]} steps, β = {BETA}", loc="left", fontsize=9)

    for (name, label), color in zip(SELECTIONS.items(), (BLUE, ORANGE), strict=True):
        error, kl = np.transpose(data["over_training"][name])
        training.plot(STEPS, error, "o-", color=color, markersize=3, label=f"error, prompts {label}")
        training.plot(STEPS[1:], kl[1:], "s--", color=color, markersize=3, label=f"β·KL, prompts {label}")
    training.set(xlabel="training steps", ylabel="accuracy (log scale)", yscale="log", ylim=(1e-6, 1))
    training.set_title(f"b  over training, all prompts, β = {BETA}", loc="left", fontsize=9)
    training.legend(frameon=False, fontsize=7)

    error, kl = np.transpose(data["over_beta"])
    betas.plot(BETAS, error, "o-", color=BLUE, markersize=3, label="error: mean |β·log Z − accuracy|")
    betas.plot(BETAS, kl, "s--", color=BLUE, markersize=3, label="β·KL(π_old‖π_θ)")
    betas.set(xlabel="β (log scale)", ylabel="accuracy (log scale)", xscale="log", yscale="log", ylim=(1e-6, 1))
    betas.set_title(f"c  after {BETA_STEPS} steps, prompts uniform", loc="left", fontsize=9)
    betas.legend(frameon=False, fontsize=7)

    _diagonal(reference)
    line = np.linspace(1e-6, 1 - 1e-6, 200)
    for beta, color in zip(FROZEN, (BLUE, GREEN, ORANGE, PURPLE), strict=True):
        reference.plot(line, closed_form(line, beta), color=color, linewidth=1, label=f"β = {beta}")
        reference.plot(
            data["frozen"]["accuracy"], data["frozen"]["beta_log_z"][str(beta)], ".", color=color, markersize=3
        )
    reference.set(xlabel="exact accuracy of the frozen reference", ylabel="exact β·log Z")
    reference.set_title("d  against a frozen reference", loc="left", fontsize=9)
    reference.legend(frameon=False, fontsize=7, loc="lower right")
    figure.tight_layout()
    save(figure, path)


def _diagonal(panel: Any) -> None:
    panel.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")


if __name__ == "__main__":
    main()
