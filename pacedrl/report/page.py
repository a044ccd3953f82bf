"""The report: the page of one run or several."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from pacedrl.report.completions import completions_json
from pacedrl.report.findings import diagnose
from pacedrl.report.held_out import headline
from pacedrl.report.pages import build_page, from_markdown, require_page
from pacedrl.report.plots import all_plots
from pacedrl.report.run import RunLogs, load_runs, variants_of
from pacedrl.report.series import MOST_POINTS
from pacedrl.report.settings import changed_settings, settings_between
from pacedrl.report.style import styled, to_svg

GUIDE = Path(__file__).parents[1] / "diagnosis" / "symptoms.md"
COMPLETIONS_BUDGET = 2_500_000
"""Bytes of completions in a page: half of what a page of 1,000 steps may take."""
SECTIONS = {"diagnosis": "Diagnosis", "plots": "Plots", "completions": "Completions", "guide": "Guide"}
SCRIPTS = ("page.js", "texts.js", "completions.js")


def render(folders: Sequence[Path], live: bool = False) -> str:
    """Return the page of one run or several; with ``live`` it also asks the server that it came from for news.

    Raises InputError as `load_runs`, and naming the ``report`` extra if it is missing.
    """
    return page(load_runs(folders), live)


def page(runs: Sequence[RunLogs], live: bool = False) -> str:
    """Return the page of runs that have been read."""
    require_page()
    name = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    facts = [_facts(run) for run in runs]
    with styled():
        plots = [
            (plot, plot.figure and to_svg(plot.figure, plot.id, f"{plot.title}. {plot.caption}"))
            for plot in all_plots(variants_of(runs))
        ]
    return build_page(
        "report.html",
        f"{name} · pacedrl",
        ["style.css", "completions.css"],
        [*SCRIPTS, "live.js"] if live else SCRIPTS,
        live,
        name=name,
        sections=SECTIONS,
        diagnoses=[(run, headline(run), diagnose(run)) for run in runs],
        facts={fact: [each[fact] for each in facts] for fact in facts[0]},
        settings=changed_settings(runs[0]) if len(runs) == 1 else settings_between(runs),
        plots=plots,
        thinned=MOST_POINTS if max(len(run.metrics) for run in runs) > MOST_POINTS else None,
        completions=Markup(completions_json({run.name: run.samples for run in runs}, COMPLETIONS_BUDGET)),
        guide=from_markdown(GUIDE.read_text(encoding="utf-8"), "attr_list"),
    )


def _facts(run: RunLogs) -> dict[str, str]:
    last = run.metrics[-1] if run.metrics else {}
    config = run.config
    seconds = float(np.nansum(run.series("time/step"))) if run.metrics else 0.0
    return {
        "model": str(config["model"].get("name")),
        "recipe": str(config["recipe"]),
        "seed": str(config["run"].get("seed")),
        "steps": f"{last.get('step', 0):,} of {config['run'].get('steps')}",
        "rollouts": f"{last.get('rollouts/generated', 0):,}, {last.get('tokens/generated', 0):,} tokens",
        "time": f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min",
        "versions": ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items()),
    }
