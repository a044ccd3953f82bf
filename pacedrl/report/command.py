"""The verbs ``report`` and ``watch``: from the command line's options to a page."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from rich.console import Console

from pacedrl.errors import InputError
from pacedrl.report.findings import diagnose
from pacedrl.report.held_out import headline
from pacedrl.report.live import serve
from pacedrl.report.page import page
from pacedrl.report.pages import require_page
from pacedrl.report.run import load_runs
from pacedrl.report.terminal import follow
from pacedrl.text import plain
from pacedrl.training.run_folder import replace_text


def report(options: argparse.Namespace) -> int:
    """Write the page, and print its path and the diagnosis of each run. Raises InputError."""
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
        found = [f"  {f.severity}: {f} [symptom-{f.id}]" for f in diagnose(run)]
        for line in [f"{run.name}: {headline(run)}", *(found or ["  nothing found"])]:
            print(plain(line))
    print(f"Report: {path}")
    return 0


def watch(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C (KeyboardInterrupt), or follow the runs in the terminal. Raises InputError."""
    for folder in options.runs:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"'{folder}' is a file; watch needs the folder of a run")
    if options.terminal:
        follow(options.runs, Console())
        return 0
    require_page(", or watch with --terminal")
    with serve(options.runs, options.port) as server:
        print(f"{server.url} shows {', '.join(map(str, options.runs))}; Ctrl-C ends it.", flush=True)
        if options.open:
            webbrowser.open(server.url)
        server.serve_forever()
    return 0
