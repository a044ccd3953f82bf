"""A verifier that does what the completion says, and helpers for tests of its processes."""

import sys
import time
from pathlib import Path

from pacedrl.tasks.verifiers import Verdict
from pacedrl.types import Prompt

JUDGES = """
    import ctypes, os, pathlib, subprocess, sys, time

    LEAKED = []

    def behave(prompts, completions, **columns):
        \"\"\"Does what the completion says.\"\"\"
        word, _, rest = completions[0].partition(" ")
        if word == "sleep":
            time.sleep(float(rest))
        elif word == "hang":
            while True:
                pass
        elif word == "exit":
            os._exit(int(rest))
        elif word == "sysexit":
            sys.exit(int(rest))
        elif word == "segfault":
            ctypes.string_at(0)
        elif word == "print":
            print('{"reward": 0.0, "error": null}', flush=True)
            os.write(1, b"garbage\\n")
            subprocess.run(["echo", "garbage"])
        elif word == "read":
            assert sys.stdin.read() == ""
        elif word == "pid":
            pathlib.Path(rest).write_text(str(os.getpid()))
            time.sleep(60)
        elif word == "grandchild":
            child = subprocess.Popen(["sleep", "60"])
            pathlib.Path(rest).write_text(str(child.pid))
            time.sleep(60)
        elif word == "close":
            os.closerange(3, 100)
            time.sleep(60)
        elif word == "memory":
            held = bytearray(int(rest) * 2**20)
        elif word == "leak":
            LEAKED.append(bytearray(2**20 * int(rest)))
        elif word == "python":
            subprocess.run([sys.executable, "-c", "import os; assert 'PYTHONPATH' not in os.environ"], check=True)
        return [1.0]

    def echo(prompts, completions, columns_of_text, answer):
        return [float(completions[0] == answer[0] and prompts[0] == columns_of_text[0])]

    def who(completions):
        return [os.getpid() / 2**32]
"""


def prompt(answer="18", content="q", task="task", **columns):
    return Prompt("key", task, content, answer, columns)


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def pids(pool):
    """Return the processes that the pool started: on Linux they are the guardians of those that judge."""
    return [worker._process.pid for worker in pool._workers]


def judging_pids(pool):
    """Return the processes that judge."""
    if sys.platform != "linux":
        return pids(pool)
    return [int(Path(f"/proc/{pid}/task/{pid}/children").read_text()) for pid in pids(pool)]


OK = Verdict(1.0, None)
