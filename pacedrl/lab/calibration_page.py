"""The page of a run's calibration: which estimator was right, on which prompts, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pacedrl.lab.calibrate import GROUPS, Calibration
from pacedrl.lab.page import to_html
from pacedrl.lab.plots import pyplot, save
from pacedrl.view import left_out

STYLES = {
    "log Z": ("#0072B2", "-"),
    "combined": ("#D55E00", "-"),
    "counts (MoPPS)": ("#009E73", "--"),
    "last group mean": ("#CC79A7", "--"),
    "one mean for all": ("#999999", ":"),
}
"""Okabe and Ito's colours, and line styles for those who see none."""


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write calibration.json, its figures and calibration.html; the path of the last. InputError without matplotlib."""
    (folder / "calibration.json").write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    title = f"Calibration of {calibration.run} ({calibration.recipe})"
    html = folder / "calibration.html"
    html.write_text(
        to_html(f"# {title}\n\n{calibration_section(calibration, folder)}", folder, title), encoding="utf-8"
    )
    return html


def calibration_section(calibration: Calibration, folder: Path, prefix: str = "calibration_") -> str:
    """In Markdown; figures are written beside it as ``PREFIX*.svg``."""
    _errors_over_time(calibration, folder / f"{prefix}errors.svg")
    _reliability(calibration, folder / f"{prefix}reliability.svg")
    note = (
        f"Means over {len(calibration.checkpoints)} checkpoints, each prompt's truth from {calibration.samples} fresh "
        "samples; the noise of that is the error that the truth itself would have. *Selected* is what the run would "
        "train on next, *seen* a random share of what it has had, one run of one seed; log Z is not clipped to [0, 1], "
        "and counts are discounted as the run's own. The Brier score is mean (p̂ − r)² over completions. "
        f"{_beta_kl(calibration)}\n"
    )
    return "\n".join(
        [
            calibration_table(calibration),
            note,
            f"![Error over training]({prefix}errors.svg)\n",
            "Mean error of each estimator at each checkpoint, by group of prompts. Grey: the noise of the truth.\n",
            f"![Reliability]({prefix}reliability.svg)\n",
            "Estimated against observed accuracy, prompts of all checkpoints in tenths of the estimate, dots as large "
            "as there are prompts. On the diagonal an estimator is right.\n",
        ]
    )


def calibration_table(calibration: Calibration) -> str:
    """Error, bias, Brier score and rank correlation of each estimator on each group, mean over checkpoints."""
    lines = [
        "| prompts | estimator | mean error | bias | Brier score | Spearman |",
        "|---|---|---|---|---|---|",
    ]
    for group in GROUPS:
        having = [checkpoint for checkpoint in calibration.checkpoints if group in checkpoint.scores]
        if not having:
            continue
        for name in having[0].scores[group]:
            scores = [checkpoint.scores[group][name] for checkpoint in having]
            ranks = [score.spearman for score in scores if score.spearman is not None]
            cells = [_mean([getattr(score, field) for score in scores]) for field in ("mae", "bias", "brier")]
            rank = f"{_mean(ranks):.2f}" if ranks else ""
            lines.append(f"| {group} | {name} | {cells[0]:.3f} | {cells[1]:+.3f} | {cells[2]:.3f} | {rank} |")
        noise = _mean([checkpoint.noise[group] for checkpoint in having])
        lines.append(f"| {group} | *noise of the truth* | {noise:.3f} | | | |")
    without = left_out(calibration.left_out).strip(" ()")
    return "\n".join([*lines, *(["", f"Completions: {without}."] if without else [])]) + "\n"


def _beta_kl(calibration: Calibration) -> str:
    values = [checkpoint.beta_kl for checkpoint in calibration.checkpoints if checkpoint.beta_kl is not None]
    if not values:
        return ""
    largest = max(map(abs, values))
    return (
        f"β·KL(π_old‖π_θ), what the theorem says β·log Z is off by, was {largest:.1e} on average between two "
        "checkpoints at most; with one optimiser step a batch it is 0 but for rounding."
    )


def _errors_over_time(calibration: Calibration, path: Path) -> None:
    figure, panels = _panels(calibration)
    for panel, group in panels:
        having = [checkpoint for checkpoint in calibration.checkpoints if group in checkpoint.scores]
        steps = [checkpoint.step for checkpoint in having]
        panel.fill_between(steps, 0, [checkpoint.noise[group] for checkpoint in having], color="#DDDDDD", linewidth=0)
        for name in having[0].scores[group]:
            colour, style = STYLES[name]
            errors = [checkpoint.scores[group][name].mae for checkpoint in having]
            panel.plot(steps, errors, style, marker=".", color=colour, label=name)
        panel.set(title=group, xlabel="step", ylim=(0, None))
    panels[0][0].set_ylabel("mean |estimate − observed|")
    panels[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def _reliability(calibration: Calibration, path: Path) -> None:
    figure, panels = _panels(calibration)
    for panel, group in panels:
        panel.plot([0, 1], [0, 1], color="#999999", linewidth=0.7)
        for name, bins in calibration.reliability[group].items():
            if len(bins) < 2:
                continue
            colour, style = STYLES[name]
            x, y = [part.predicted for part in bins], [part.observed for part in bins]
            panel.plot(x, y, style, color=colour, label=name, linewidth=1)
            panel.scatter(x, y, s=[2 + part.prompts**0.5 * 2 for part in bins], color=colour, linewidth=0)
        panel.set(title=group, xlabel="estimated accuracy", ylim=(-0.03, 1.03))
    panels[0][0].set_ylabel("observed accuracy")
    panels[0][0].legend(frameon=False, fontsize=7)
    save(figure, path)


def _panels(calibration: Calibration) -> tuple[Any, list[tuple[Any, str]]]:
    """A figure with a panel for each group that some checkpoint has."""
    groups = [group for group in GROUPS if any(group in checkpoint.scores for checkpoint in calibration.checkpoints)]
    figure, axes = pyplot().subplots(
        1, len(groups), figsize=(3.1 * len(groups), 3.0), sharey=True, squeeze=False, constrained_layout=True
    )
    return figure, list(zip(axes.flat, groups, strict=True))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
