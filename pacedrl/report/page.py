"""The page: one HTML file that opens from disk and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pacedrl.errors import InputError
from pacedrl.report.completions import browser
from pacedrl.report.diagnosis import diagnose
from pacedrl.report.figures import MOST_POINTS
from pacedrl.report.panels import Key, Plot
from pacedrl.report.plots import all_plots
from pacedrl.report.progress import headline
from pacedrl.report.run import RunLogs, lines_of, load_runs
from pacedrl.report.style import styled, to_svg
from pacedrl.report.text import changed_settings, inert, settings_between

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
COMPLETIONS_BUDGET = 2_500_000
"""Bytes of completions in a page: half of what a page of 1,000 steps may take."""
SECTIONS = {"diagnosis": "Diagnosis", "plots": "Plots", "completions": "Completions", "guide": "Guide"}
SWATCHES = ("none", "5 2", "1.5 1.5", "6 2 1.5 2", "none", "5 2", "1.5 1.5", "none")
"""Dashes of the legend, as `pacedrl.report.style.DASHES`."""


def render(folders: Sequence[Path], live: bool = False) -> str:
    """The page of one run or several; with ``live`` it also asks the server that it came from for news.

    Raises InputError as `load_runs`, and naming the extra where the ``report`` extra is missing.
    """
    return page(load_runs(folders), live)


def page(runs: Sequence[RunLogs], live: bool = False) -> str:
    """The same of runs that are read already."""
    lines = lines_of(runs)
    fragment = browser({run.name: run.samples for run in runs}, COMPLETIONS_BUDGET)
    scripts = [_asset("page.js"), fragment.script] + ([_asset("live.js")] if live else [])
    with styled():
        plots = _plots(all_plots(lines))
    bodies = {
        "diagnosis": _diagnosis(runs),
        "plots": _thinned(runs) + plots,
        "completions": fragment.html,
        "guide": f'<div class="text">{_guide()}</div>',
    }
    sections = "\n".join(
        f'<section id="{name}"><h2>{title}</h2>\n{bodies[name]}\n</section>' for name, title in SECTIONS.items()
    )
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    links = " ".join(f'<a href="#{name}">{label}</a>' for name, label in SECTIONS.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, live)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">
<title>{inert(title)} · pacedrl</title>
<style>{_style()}{fragment.css}</style></head><body>
<a class="skip" href="#diagnosis">Skip to the diagnosis</a>
<header><h1>{inert(title)}</h1></header>
<nav class="toc" aria-label="Sections"><div>{links}<button id="theme" type="button">Dark</button></div></nav>
<main>
{sections}
</main>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body></html>
"""


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _style() -> str:
    return _asset("style.css").replace("DARK", _asset("dark.css"))


def _policy(scripts: Sequence[str], live: bool) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    asks = "; connect-src 'self'" if live else ""
    rest = "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {sources}; {rest}{asks}"


def _guide() -> str:
    try:
        import markdown
    except ImportError:
        raise InputError("the page needs markdown: pip install 'pacedrl[report]'") from None
    text: str = markdown.markdown((HERE / "symptoms.md").read_text(encoding="utf-8"), extensions=["attr_list"])
    return text


def _diagnosis(runs: Sequence[RunLogs]) -> str:
    parts = [_verdict(run, named=len(runs) > 1) for run in runs]
    if len(runs) == 1:
        return "\n".join([*parts, _facts(runs), _changed(runs[0])])
    differing = _table(["setting", *(run.name for run in runs)], [[n, *v] for n, v in settings_between(runs).items()])
    return "\n".join([*parts, _facts(runs), f"<h3>Settings that differ</h3>{differing}"])


def _verdict(run: RunLogs, named: bool) -> str:
    """The headline and the findings of one run."""
    findings = diagnose(run)
    items = [
        f'<li class="{finding.severity}"><b>{_word(finding.severity)}</b> {inert(finding.text)}. '
        f'<a href="#symptom-{finding.id}">Guide</a><br>Remedy: {inert(finding.remedy)}.</li>'
        for finding in findings
    ]
    if not items and run.metrics:
        items = ['<li class="good"><b>Nothing found.</b> None of the rules of the guide applies to this run.</li>']
    name = f"<h3>{inert(run.name)}</h3>" if named else ""
    return f'{name}<p class="headline">{inert(headline(run))}</p><ul class="findings">{"".join(items)}</ul>'


def _word(severity: str) -> str:
    return "Wrong:" if severity == "bad" else "Look at:"


def _facts(runs: Sequence[RunLogs]) -> str:
    facts = [_facts_of(run) for run in runs]
    if len(runs) == 1:
        return _table([], [[name, value] for name, value in facts[0].items()])
    return _table(["", *(run.name for run in runs)], [[name, *(each[name] for each in facts)] for name in facts[0]])


def _facts_of(run: RunLogs) -> dict[str, str]:
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


def _changed(run: RunLogs) -> str:
    rows = [[name, value] for name, value in changed_settings(run).items()]
    return f"<details><summary>{len(rows)} settings differ from the recipe's</summary>{_table([], rows)}</details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first cell of each row is its heading; all text is made inert here."""
    head = "".join(f'<th scope="col">{inert(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{inert(name)}</th>{"".join(f"<td>{inert(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plots(plots: Sequence[Plot]) -> str:
    drawn = "\n".join(_figure(plot) for plot in plots if plot.figure is not None)
    absent = "".join(
        f'<p class="absent"><b>{inert(plot.title)}.</b> {inert(plot.caption)}</p>'
        for plot in plots
        if plot.figure is None
    )
    return f'<div class="grid">\n{drawn}\n</div>{absent}'


def _thinned(runs: Sequence[RunLogs]) -> str:
    if max(len(run.metrics) for run in runs) <= MOST_POINTS:
        return ""
    text = f"Lines of over {MOST_POINTS} steps are thinned out; the lowest and highest of every stretch are kept."
    return f'<p class="absent">{text}</p>'


def _figure(plot: Plot) -> str:
    svg = to_svg(plot.figure, plot.id, inert(f"{plot.title}. {plot.caption}"))
    guide = f' <a href="#symptom-{plot.symptom}">Guide</a>' if plot.symptom else ""
    keys = f'<ul class="keys">{"".join(map(_key, plot.keys))}</ul>'
    return (
        f'<figure class="plot" id="plot-{plot.id}"><h3>{inert(plot.title)}</h3>{keys}{svg}'
        f"<figcaption>{inert(plot.caption)}{guide}</figcaption></figure>"
    )


def _key(key: Key) -> str:
    colour = "--muted" if key.shape == "background" else f"--s{key.series + 1}"
    dashes = SWATCHES[key.series] if key.shape == "line" else "none"
    width = {"line": 3, "solid": 3, "area": 10, "background": 1}[key.shape]
    stroke = f'stroke="var({colour})" stroke-width="{width}" stroke-dasharray="{dashes}"'
    swatch = f'<svg aria-hidden="true" viewBox="0 0 26 10"><path d="M0 5H26" {stroke}/></svg>'
    return f"<li>{swatch}{inert(key.label)}</li>"
