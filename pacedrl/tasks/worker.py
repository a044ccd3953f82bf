"""A verifier process: reads jobs from a socket, answers with verdicts, one JSON object a line, ASCII only.

Started by ``pacedrl.tasks.pool``. It sends ``"ready"`` once; for each job it sends ``"begin"`` when the job's verifier
is imported (from then on the pool's clock runs) and then the verdict. It ends when the socket does.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.verifiers import Verdict, Verifier, judge, resolve
from pacedrl.types import Prompt

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serve the socket at file ``descriptor`` until it closes or the process ``parent`` dies."""
    _die_with(parent)
    os.set_inheritable(descriptor, False)  # not for the processes that a verifier may start
    connection = socket.socket(fileno=descriptor)
    verifiers: dict[str, Verifier] = {}
    _send(connection, "ready")
    with connection.makefile("rb") as jobs:
        for line in jobs:
            job = json.loads(line)
            spec = job["verifier"]
            try:
                if spec not in verifiers:
                    verifiers[spec] = resolve(spec)
            except InputError as error:
                verdict = Verdict(None, str(error))
            else:
                _send(connection, "begin")
                verdict = judge(verifiers[spec], Prompt(**job["prompt"]), job["text"])
            _send(connection, {"reward": verdict.reward, "error": verdict.error})


def _send(connection: socket.socket, message: Any) -> None:
    connection.sendall(json.dumps(message).encode("ascii") + b"\n")


def _die_with(parent: int) -> None:
    """A stuck verifier does not notice that its socket closed, so Linux is asked to kill it with its parent."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
