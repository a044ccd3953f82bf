"""Stand-in for the owner's module."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path

from pacedrl.report.completions import ASSETS, browser
from pacedrl.report.diagnosis import diagnose
from pacedrl.report.run import load_run

CSS = """
:root { --bg:#f7f7f5; --card:#fff; --fg:#1b1f24; --muted:#57606a; --line:#d8dde3; --accent:#0a5ea8; --good:#13693f;
  --bad:#b3261e; --warn:#8a5300; --focus:#0a5ea8; color-scheme: light; }
@media (prefers-color-scheme: dark) { :root { --bg:#111418; --card:#181c22; --fg:#e6e9ed; --muted:#9aa4b0; 
 --line:#2d333b;  --accent:#6cb2f2; --good:#5fcf94; --bad:#ff8a80; --warn:#f0b35a; --focus:#6cb2f2; color-scheme: dark; } }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; background: var(--bg);
  color: var(--fg); }
"""


def render(folders: Sequence[Path], live: bool = False) -> str:
    runs = [load_run(folder) for folder in folders]
    part = browser({run.name: run.samples for run in runs}, 2_000_000)
    scripts = [part.script, *([(ASSETS / "live.js").read_text()] if live else [])]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    csp = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    csp += "; connect-src 'self'" if live else ""
    findings = "".join(
        f"<li>{html.escape(f.text)}; {html.escape(f.remedy)}</li>" for run in runs for f in diagnose(run)
    )
    plots = "".join(f"<svg width=300 height=100><rect width={len(run.metrics)} height=50></rect></svg>" for run in runs)
    steps = sum(len(run.metrics) for run in runs)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{html.escape(csp)}"><title>stand-in</title>
<style>{CSS}{part.css}</style></head><body><main><h1>{html.escape(runs[0].name)}</h1>
<section id="diagnosis"><h2>Diagnosis</h2><ul>{findings}</ul></section>
<section id="plots"><h2>Plots</h2><p>{steps} steps</p>{plots}</section>
<section id="completions"><h2>Completions</h2>{part.html}</section>
<section id="guide"><h2>Guide</h2></section></main>
{"".join(f"<script>{script}</script>" for script in scripts)}</body></html>"""
