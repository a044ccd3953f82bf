"""Serves the page of runs in progress on a local port (``pacedrl watch``).

The page is built when it is asked for and a log has changed, so nothing happens while nobody looks. It is served on the
loopback interface, and only if the request's Host is this address, so that no other web page can read it by DNS
rebinding. Nothing else is served.
"""

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pacedrl.errors import InputError
from pacedrl.report import page as report
from pacedrl.report.pages import build_page
from pacedrl.report.run_state import RunState, run_state, stamp

INTERVAL_S = 3.0
"""Minimum seconds between two builds of the page; after a slower build, the pause is as long as the build took."""


@dataclass
class LivePage:
    """The page of some runs as it was last built, and when it may be built again. Threads may share it."""

    folders: Sequence[Path]
    interval_s: float = INTERVAL_S
    _lock: threading.Lock = field(default_factory=threading.Lock)  # matplotlib, too, draws for one thread at a time
    _text: str = ""
    _stamp: str = ""
    _due_at: float = 0.0

    def stamp(self) -> str:
        """Return the stamp of what `read` would return now."""
        return stamp(self.folders) if time.monotonic() >= self._due_at else self._stamp

    def read(self) -> tuple[str, str]:
        """Return the stamp and the page, built anew if a log has changed and the pause since the last build is over."""
        with self._lock:
            now = self.stamp()
            if now != self._stamp:
                start = time.monotonic()
                self._text = self._build()
                self._stamp = now
                end = time.monotonic()
                self._due_at = end + max(self.interval_s, end - start)
            return self._stamp, self._text

    def states(self) -> list[RunState]:
        return [run_state(folder, time.time()) for folder in self.folders]

    def _build(self) -> str:
        states = self.states()
        ready = [folder for folder, run in zip(self.folders, states, strict=True) if run.state != "waiting"]
        if not ready:
            return _waiting("; ".join(f"{run.name}: {run.text}" for run in states))
        try:
            return report.render(ready, live=True)
        except InputError as error:
            return _waiting(str(error))  # the run is half synced, or the user must correct something


def _waiting(reason: str) -> str:
    return build_page("waiting.html", "pacedrl watch", ["waiting.css"], ["live.js"], live=True, reason=reason)


class PageServer(ThreadingHTTPServer):
    """Serves ``page`` on the loopback interface. Each request has its own thread: browsers open idle connections."""

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def serve(folders: Sequence[Path], port: int = 0, interval_s: float = INTERVAL_S) -> PageServer:
    """Return a server of the runs' page that is not serving yet; port 0 is any free one.

    Raises InputError if the port is taken.
    """
    try:
        return PageServer(LivePage(folders, interval_s), port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port: cannot listen on {port} ({error}); choose another, or leave it out") from None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "pacedrl"
    sys_version = ""

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self._answer(403, "text/plain", "this page is served to its own machine only\n")
        elif self.path == "/":
            stamp, text = self.server.page.read()
            self._answer(200, "text/html", text, stamp)
        elif self.path == "/stamp":
            page = self.server.page
            runs = [{"name": run.name, "state": run.state, "text": run.text} for run in page.states()]
            self._answer(200, "application/json", json.dumps({"stamp": page.stamp(), "runs": runs}))
        else:
            self._answer(404, "text/plain", "only / is served\n")

    def _answer(self, code: int, kind: str, text: str, stamp: str | None = None) -> None:
        body = text.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if stamp is not None:
            self.send_header("ETag", f'"{stamp}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Log nothing: a line for every poll would be noise."""
