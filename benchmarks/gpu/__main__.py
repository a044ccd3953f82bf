"""Check pacedrl on a GPU, and measure its speed there.

    python benchmarks/gpu correctness        # 9 minutes on one GPU
    python benchmarks/gpu speed              # 9 minutes
    python benchmarks/gpu speed --only decode,update
    python benchmarks/gpu correctness --device cpu    # rehearse with tiny models; checks that need a GPU say so

Each check runs in its own process with a time limit, and prints one line of JSON: its name, whether it passed (``ok``),
its seconds and its figures. A failure does not stop the others. ``--json FILE`` also appends the lines to a file. On a
GPU three checks of correctness run at a time, for which 48 GB should do; with less, use ``--jobs 1 --minutes 20``.
docs/gpu.md says what each figure should be.

On a machine without network, install from wheels fetched elsewhere. With torch, transformers, accelerate, peft, pytest
and hypothesis in place, pacedrl also needs these (64-bit Linux, Python 3.12; 4 MB):

    pip download --no-deps --only-binary :all: --python-version 3.12 --platform manylinux2014_x86_64 --dest .wheels \\
        pydantic pydantic-core annotated-types typing-inspection datasets dill multiprocess math-verify \\
        latex2sympy2-extended antlr4-python3-runtime==4.13.2
    pip install --no-deps .wheels/*.whl && pip install --no-deps --no-build-isolation -e .
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import correctness
import speed

GROUPS = {"correctness": correctness.CHECKS, "speed": speed.CHECKS}
MINUTES = 9.0
JOBS = {"correctness": 3, "speed": 1}
"""Checks that run on a GPU at a time. With these, the time limits of a group's checks fit into ``MINUTES``."""
LINE = "check: "
"""What precedes a check's figures in the output of its process."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=list(GROUPS))
    parser.add_argument("--only", help="names of checks, separated by commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all checks together")
    parser.add_argument("--jobs", type=int, help="checks that run at a time")
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # run this check in this process
    options = parser.parse_args()
    checks = GROUPS[options.group]
    if options.here:
        found = checks[options.here][0](options.device)
        print(LINE + json.dumps(found), flush=True)
        return 0
    names = options.only.split(",") if options.only else list(checks)
    if unknown := [name for name in names if name not in checks]:
        parser.error(f"unknown checks {', '.join(unknown)}; known: {', '.join(checks)}")
    check = partial(run, options.group, options.device, time.monotonic() + 60 * options.minutes)
    jobs = options.jobs or (JOBS[options.group] if options.device == "cuda" else 1)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed(pool.submit(check, name) for name in names):
            found = done.result()
            failed += found["ok"] is False
            line = json.dumps(found)
            print(line, flush=True)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return int(failed > 0)


def run(group: str, device: str, end: float, name: str) -> dict[str, Any]:
    """Run a check in its own process, until the monotonic time ``end`` at most.

    ``ok`` is None for a check that needs a GPU which is not there.
    """
    found: dict[str, Any] = {"check": name, "ok": False}
    limit_s = min(GROUPS[group][name][1], end - time.monotonic())
    if limit_s <= 0:
        return found | {"error": "no time is left"}
    command = [sys.executable, str(Path(__file__).parent), group, "--device", device, "--here", name]
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        _, errors = process.communicate()
        tail = errors.strip().splitlines()[-3:]
        return found | {"seconds": round(limit_s, 1), "error": f"not done after {limit_s:.0f} s", "tail": tail}
    found["seconds"] = round(time.perf_counter() - start, 1)
    figures = [line for line in output.splitlines() if line.startswith(LINE)]
    if figures and process.returncode == 0:
        return found | json.loads(figures[-1].removeprefix(LINE))
    tail = (errors.strip() or output.strip()).splitlines()[-3:]
    return found | {"error": f"exit status {process.returncode}", "tail": tail}


if __name__ == "__main__":
    sys.exit(main())
