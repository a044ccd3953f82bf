"""The page of a run's calibration: which estimator was right, on which prompts, and when."""

from pathlib import Path
from statistics import mean
from typing import Any

from pacedrl.lab.calibrate import INTERVALS, SUBSETS, Calibration, Scores
from pacedrl.report.pages import article, fill
from pacedrl.report.style import BLUE, FILE, GREEN, GREY, ORANGE, PURPLE, new_grid, save, styled
from pacedrl.view import left_out

STYLES = {
    "log Z": (BLUE, "-"),
    "combined": (ORANGE, "-"),
    "counts (MoPPS)": (GREEN, "--"),
    "implied evidence (BOTS)": (GREEN, "--"),
    "last group mean": (PURPLE, "--"),
    "one mean for all": (GREY, ":"),
}


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write calibration.json, its figures and calibration.html, and return the path of the page."""
    (folder / "calibration.json").write_text(calibration.model_dump_json(indent=1) + "\n", encoding="utf-8")
    title = f"Calibration of {calibration.run} ({calibration.recipe})"
    path = folder / "calibration.html"
    text = f"# {title}\n\n{calibration_section(calibration, folder)}"
    path.write_text(article(text, folder, title), encoding="utf-8")
    return path


def calibration_section(calibration: Calibration, folder: Path, prefix: str = "calibration_") -> str:
    """Return the text in Markdown, and write its figures into the folder as ``PREFIX*.svg``."""
    _errors_over_time(calibration, folder / f"{prefix}errors.svg")
    _reliability(calibration, folder / f"{prefix}reliability.svg")
    kl = [abs(checkpoint.beta_kl) for checkpoint in calibration.checkpoints if checkpoint.beta_kl is not None]
    return fill(
        "calibration.md",
        **_table(calibration),
        checkpoints=len(calibration.checkpoints),
        samples=calibration.samples,
        beta_kl=f"{max(kl):.1e}" if kl else "",
        prefix=prefix,
    )


def calibration_table(calibration: Calibration) -> str:
    """Return the scores and the coverage of each estimator on each group, mean over checkpoints."""
    return fill("calibration_table.md", **_table(calibration))


def _table(calibration: Calibration) -> dict[str, object]:
    rows = []
    for group in SUBSETS:
        having = [checkpoint for checkpoint in calibration.checkpoints if group in checkpoint.scores]
        for name in having[0].scores[group] if having else ():
            scores = [checkpoint.scores[group][name] for checkpoint in having]
            mae, bias, brier = (mean([getattr(s, field) for s in scores]) for field in ("mae", "bias", "brier"))
            ranks = [score.spearman for score in scores if score.spearman is not None]
            rank = f"{mean(ranks):.2f}" if ranks else ""
            covered = [_mean_coverage(scores, interval) for interval in INTERVALS]
            rows.append([group, name, f"{mae:.3f}", f"{bias:+.3f}", f"{brier:.3f}", rank, *covered])
        if having:
            noise = mean([checkpoint.noise[group] for checkpoint in having])
            rows.append([group, "*noise of the truth*", f"{noise:.3f} | | | | |"])
    return {"rows": rows, "left_out": left_out(calibration.left_out).strip(" ()")}


def _mean_coverage(scores: list[Scores], interval: str) -> str:
    """Return the mean coverage in percent; nothing for point estimates."""
    known = [score.coverage[interval] for score in scores if interval in score.coverage]
    return f"{mean(known):.0%}" if known else ""


@styled(FILE)
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


@styled(FILE)
def _reliability(calibration: Calibration, path: Path) -> None:
    figure, panels = _panels(calibration)
    for panel, group in panels:
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
        for name, bins in calibration.reliability[group].items():
            if len(bins) < 2:
                continue
            colour, style = STYLES[name]
            x, y = [part.predicted for part in bins], [part.observed for part in bins]
            panel.plot(x, y, style, color=colour, label=name, linewidth=1)
            panel.scatter(x, y, s=[2 + part.prompts**0.5 * 2 for part in bins], color=colour, linewidth=0)
        panel.set(title=group, xlabel="estimated accuracy", ylim=(-0.03, 1.03))
    panels[0][0].set_ylabel("observed accuracy")
    named = next((panel for panel, _ in panels if panel.get_legend_handles_labels()[0]), None)
    if named is not None:  # with few prompts, all estimates of an estimator may lie in one bin
        named.legend(frameon=False, fontsize=7)
    save(figure, path)


def _panels(calibration: Calibration) -> tuple[Any, list[tuple[Any, str]]]:
    """Return a figure and its panels, one for each group that some checkpoint has."""
    groups = [group for group in SUBSETS if any(group in checkpoint.scores for checkpoint in calibration.checkpoints)]
    figure, panels = new_grid(3.1 * len(groups), 3.0, 1, len(groups), layout="constrained", sharey=True)
    return figure, list(zip(panels.flat, groups, strict=True))
