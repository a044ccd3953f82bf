"""The checks for a GPU, rehearsed on a CPU with tiny models."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
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
NEED_GPU = {"nan", "memory", "out_of_memory"}


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


@pytest.fixture
def checks() -> Iterator[Any]:
    """The module of the command, which imports the modules of the checks beside it."""
    folder = str(ROOT / "benchmarks/gpu")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("gpu_checks", ROOT / "benchmarks/gpu/__main__.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        while folder in sys.path:
            sys.path.remove(folder)


def test_a_run_that_fails_says_why(checks: Any, tmp_path: Path) -> None:
    with pytest.raises(checks.correctness.TrainingFailed, match=r"optimizer\.tokens_per_micro_batch"):
        checks.correctness._train(tmp_path / "run", "cpu", {"optimizer.tokens_per_micro_batch": 0})


def test_make_fails_if_either_group_fails(tmp_path: Path) -> None:
    """The recipe of `make gpu`, with a stand-in for Python that fails for one group."""
    python = tmp_path / "python"
    recipe = subprocess.run(["make", "-n", "gpu", f"BIN={tmp_path}"], cwd=ROOT, capture_output=True, text=True).stdout
    command = recipe[recipe.index("failed=0") :]
    for failing, status in (("correctness", 1), ("speed", 1), ("neither", 0)):
        python.write_text(f'#!/bin/sh\necho "$2" >> {tmp_path}/{failing}\n[ "$2" != {failing} ]\n')
        python.chmod(0o755)
        assert subprocess.run(["sh", "-c", command]).returncode == status
        assert (tmp_path / failing).read_text().split() == ["correctness", "speed"]


def test_the_page_lists_every_check(checks: Any) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/gpu.md").read_text(), re.MULTILINE)
    assert listed == [name for group in checks.GROUPS.values() for name in group]


def test_the_limits_fit_into_the_time_of_a_group(checks: Any) -> None:
    """However long the checks take, a worker that is free starts the next one."""
    for group, found in checks.GROUPS.items():
        limits = [limit for _, limit in found.values()]
        assert (sum(limits) - max(limits)) / checks.JOBS[group] + max(limits) <= 60 * checks.MINUTES


def test_the_tests_that_run_on_the_device_exist(checks: Any) -> None:
    assert all((ROOT / path).is_file() for path in checks.correctness.ON_DEVICE)
