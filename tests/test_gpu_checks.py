"""The checks for a GPU, rehearsed on a CPU with tiny models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"correctness": ["nan", "packed"], "speed": ["decode"]}
SLOW = {
    "correctness": [
        "versions",
        "head",
        "memory",
        "out_of_memory",
        "fsdp",
        "lora",
        "checkpointed",
        "ahead",
        "demo",
        "tests",
    ],
    "speed": ["machine", "remedies", "generate_batch", "attention", "update", "shares", "step"],
}
NEED_GPU = {"nan", "memory", "out_of_memory", "generate_batch"}


def rehearse(group: str, names: list[str], *more: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "benchmarks/gpu"), group, "--device", "cpu", "--only", ",".join(names)]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_figures(group: str, names: list[str]) -> None:
    found = rehearse(group, names)
    assert [line["check"] for line in found] == names
    for line in found:
        assert "error" not in line, line
        assert (line["ok"] is None) == (line["check"] in NEED_GPU)
        assert line["ok"] is not False or group == "speed", line


@pytest.mark.parametrize("group", QUICK)
def test_checks_run_on_a_cpu(group: str) -> None:
    require_figures(group, QUICK[group])


@pytest.mark.slow
@pytest.mark.parametrize("group", SLOW)
def test_slow_checks_run_on_a_cpu(group: str) -> None:
    require_figures(group, SLOW[group])


def test_a_check_that_takes_too_long_is_ended_and_the_others_run() -> None:
    first, second = rehearse("speed", ["machine", "decode"], "--minutes", "0.02")
    assert first["ok"] is second["ok"] is False
    assert first["error"] == "not done after 1 s"
    assert second["error"] == "no time is left"


def test_the_page_lists_every_check() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/gpu.md").read_text(), re.MULTILINE)
    sys.path.insert(0, str(ROOT / "benchmarks/gpu"))
    try:
        import correctness
        import speed
    finally:
        sys.path.pop(0)
    assert listed == [*correctness.CHECKS, *speed.CHECKS]
