"""``pacedrl report``."""

import argparse
from pathlib import Path

from pacedrl.cli.arguments import home_path
from pacedrl.errors import InputError
from pacedrl.paths import replace_text

HELP = "write one HTML page about a run, or several overlaid: plots, completions, and what to change"
EXAMPLE = "runs/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=home_path, nargs="+", metavar="RUN", help="folder of a run")
    out = "the page (default: RUN/report.html; for several runs ./report.html)"
    parser.add_argument("--out", type=home_path, metavar="FILE", help=out)


def run(options: argparse.Namespace) -> int:
    """Write the page, and print its path and the diagnosis of each run."""
    from pacedrl.report.findings import diagnose
    from pacedrl.report.held_out import headline
    from pacedrl.report.page import page
    from pacedrl.report.run import load_runs
    from pacedrl.text import plain

    runs = load_runs(options.runs)
    for logs in runs:
        if not logs.metrics:
            raise InputError(f"{logs.folder}: no step is finished yet, so there is nothing to report")
    path = options.out or (options.runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if not path.parent.is_dir():
        raise InputError(f"--out: there is no folder '{path.parent}' to write '{path.name}' into")
    try:
        replace_text(path, page(runs))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another file with --out FILE") from None
    for logs in runs:
        found = [f"  {f.severity}: {f} [symptom-{f.id}]" for f in diagnose(logs)]
        for line in [f"{logs.name}: {headline(logs)}", *(found or ["  nothing found"])]:
            print(plain(line))
    print(f"Report: {path}")
    return 0
