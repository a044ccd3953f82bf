"""The verb ``report``: from the command line's options to a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from pacedrl.errors import InputError
from pacedrl.report.diagnosis import diagnose
from pacedrl.report.page import page
from pacedrl.report.progress import headline
from pacedrl.report.run import RunLogs, load_runs
from pacedrl.report.text import plain
from pacedrl.training.run_folder import replace_text


def report(options: argparse.Namespace) -> int:
    """Write the page and print where, and what the diagnosis says. Raises InputError."""
    runs = load_runs(options.runs)
    for run in runs:
        if not run.metrics:
            raise InputError(f"{run.folder}: no step is finished yet, so there is nothing to report")
    path = options.out or (options.runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if not path.parent.is_dir():
        raise InputError(f"--out: there is no folder '{path.parent}' to write '{path.name}' into")
    text = page(runs)
    try:
        replace_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file with --out FILE") from None
    for run in runs:
        print("\n".join(_said(run)))
    print(f"Report: {path}")
    return 0


def _said(run: RunLogs) -> list[str]:
    findings = [f"  {f.severity}: {f.text}. Remedy: {f.remedy}. [symptom-{f.id}]" for f in diagnose(run)]
    return [plain(line) for line in (f"{run.name}: {headline(run)}", *(findings or ["  nothing found"]))]
