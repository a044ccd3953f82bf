"""``pacedrl watch``: the page of runs that go on, on a local port, or a dashboard in the terminal.

The page is built when it is asked for and a log has changed, so nothing happens while nobody looks. It is served on the
loopback interface, to requests that name that address (a web page elsewhere cannot reach it by a name of its own that
resolves here), and nothing else is.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pacedrl.errors import InputError
from pacedrl.report.completions import ASSETS
from pacedrl.report.status import Status, stamp, status

INTERVAL_S = 3.0
"""The page is not built anew sooner than this after the last time, nor sooner than it took to build."""

_WAITING = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{digest}'; style-src
'unsafe-inline'; base-uri 'none'; form-action 'none'; connect-src 'self'">
<title>pacedrl watch</title><style>
:root {{ color-scheme: light dark; --card: Canvas; --fg: CanvasText; --line: GrayText; --muted: CanvasText; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 4rem auto; padding: 0 1rem; }}
</style></head><body><main><h1>Nothing to see yet</h1><p>{reason}</p></main>
<script>{script}</script></body></html>
"""


def require_page() -> None:
    """Raise InputError naming the extra, and what does without, where what the page needs is missing."""
    try:
        import markdown  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the page needs {error.name}: pip install 'pacedrl[report]', or watch with --terminal"
        ) from None


class LivePage:
    """The page of some runs as it was last built, and when it is time to build it again. Safe to share by threads."""

    def __init__(self, folders: Sequence[Path], interval_s: float = INTERVAL_S) -> None:
        self.folders = folders
        self.interval_s = interval_s
        self._lock = threading.Lock()  # matplotlib's, too: it draws for one thread at a time
        self._text = ""
        self._stamp = ""
        self._due_at = 0.0

    def stamp(self) -> str:
        """Of what `read` would return now."""
        return stamp(self.folders) if time.monotonic() >= self._due_at else self._stamp

    def read(self) -> tuple[str, str]:
        """The stamp and the page, built anew if a log has changed and the last time is long enough ago."""
        with self._lock:
            now = self.stamp()
            if now != self._stamp:
                start = time.monotonic()
                self._text = self._build()
                self._stamp = now
                end = time.monotonic()
                self._due_at = end + max(self.interval_s, end - start)
            return self._stamp, self._text

    def statuses(self) -> list[Status]:
        return [status(folder, time.time()) for folder in self.folders]

    def _build(self) -> str:
        from pacedrl.report.page import render

        statuses = self.statuses()
        ready = [folder for folder, of in zip(self.folders, statuses, strict=True) if of.state != "waiting"]
        if not ready:
            return _waiting("; ".join(f"{of.name}: {of.text}" for of in statuses))
        try:
            return render(ready, live=True)
        except InputError as error:
            return _waiting(str(error))  # half of a run that is being synced; or what the reader must put right


def _waiting(reason: str) -> str:
    script = (ASSETS / "live.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return _WAITING.format(digest=digest, reason=html.escape(reason), script=script)


class Server(ThreadingHTTPServer):
    """Serves ``page`` on the loopback interface. A thread a request: browsers open connections and say nothing."""

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


def serve(folders: Sequence[Path], port: int = 0, interval_s: float = INTERVAL_S) -> Server:
    """A server of the runs' page, not yet serving; port 0 is any that is free. InputError where the port is taken."""
    try:
        return Server(LivePage(folders, interval_s), port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port: cannot listen on {port} ({error}); choose another, or leave it out") from None


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "pacedrl"
    sys_version = ""

    def do_GET(self) -> None:
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self._answer(403, "text/plain", "this page is for the machine that it is served on\n")
        elif self.path == "/":
            stamp, text = self.server.page.read()
            self._answer(200, "text/html", text, stamp)
        elif self.path == "/stamp":
            self._answer(200, "application/json", self._state())
        else:
            self._answer(404, "text/plain", "there is / and nothing else\n")

    def _state(self) -> str:
        page = self.server.page
        runs = [{"name": of.name, "state": of.state, "text": of.text} for of in page.statuses()]
        return json.dumps({"stamp": page.stamp(), "runs": runs})

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
        """A line a poll would be noise."""
