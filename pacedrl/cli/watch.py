"""``pacedrl watch``."""

import argparse

from pacedrl.cli.arguments import home_path
from pacedrl.errors import InputError

HELP = "follow runs on a local page or in the terminal, including stopped runs and synced copies"
EXAMPLE = "runs/demo --open"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", type=home_path, nargs="+", metavar="RUN", help="folder of a run; it need not exist yet")
    add("--terminal", action="store_true", help="show a dashboard in the terminal instead of a page")
    add("--port", type=int, default=0, help="port of the page on 127.0.0.1 (default: any free port)")
    add("--open", action="store_true", help="open the page in the browser")


def run(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C (KeyboardInterrupt), or follow the runs in the terminal."""
    for folder in options.runs:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"'{folder}' is a file; watch needs the folder of a run")
    if options.terminal:
        from rich.console import Console

        from pacedrl.report.terminal import follow

        follow(options.runs, Console())
        return 0
    import webbrowser

    from pacedrl.report.live import serve
    from pacedrl.report.pages import require_page

    require_page(hint=", or watch with --terminal")
    with serve(options.runs, options.port) as server:
        print(f"{server.url} shows {', '.join(map(str, options.runs))}; Ctrl-C ends it.", flush=True)
        if options.open:
            webbrowser.open(server.url)
        server.serve_forever()
    return 0
