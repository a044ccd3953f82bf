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
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.verifiers import Verdict, Verifier, judge, resolve
from pacedrl.types import Prompt

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int, memory_mib: int) -> None:
    """Serve the socket at file ``descriptor`` until it closes or the process ``parent`` dies.

    A job that runs out of memory gets its verdict, and the process ends: who knows what state that left it in.
    """
    die_with(parent)
    os.set_inheritable(descriptor, False)  # not for the processes that a verifier may start
    connection = socket.socket(fileno=descriptor)
    verifiers: dict[tuple[str, str], Verifier] = {}
    _send(connection, "ready")
    with connection.makefile("rb") as jobs:
        for line in jobs:
            job = json.loads(line)
            spec = (job["verifier"], json.dumps(job["options"], sort_keys=True))
            out_of_memory = False
            try:
                if spec not in verifiers:
                    _limit_memory(None)
                    verifiers[spec] = resolve(job["verifier"], job["options"])
                    _limit_memory(memory_mib)
            except InputError as error:
                verdict = Verdict(None, str(error))
            else:
                _send(connection, "begin")
                try:
                    verdict = judge(verifiers[spec], Prompt(**job["prompt"]), job["text"])
                except MemoryError:
                    out_of_memory = True
                    verdict = Verdict(None, f"ran out of memory; the limit is {memory_mib} MiB (verifier.memory_mib)")
            _send(connection, {"reward": verdict.reward, "error": verdict.error, "retiring": out_of_memory})
            if out_of_memory:
                return


def _limit_memory(mebibytes: int | None) -> None:
    """Let the process allocate this much beyond what it holds now; None lifts the limit. Linux only."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = hard if mebibytes is None else pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _send(connection: socket.socket, message: Any) -> None:
    connection.sendall(json.dumps(message).encode("ascii") + b"\n")


def die_with(parent: int) -> None:
    """End this process when ``parent`` does, on Linux; elsewhere nothing sees to it.

    A stuck verifier, for one, does not notice that its socket closed.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        sys.exit(1)
