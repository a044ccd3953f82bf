"""The walk through a new objective in docs/contributing.md, followed to the letter on a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import ROOT, blocks

PAGE = ROOT / "docs" / "contributing.md"


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which the four blocks were added where the page says."""
    folder = tmp_path_factory.mktemp("contributor")
    package = folder / "pacedrl"
    shutil.copytree(ROOT / "pacedrl", package, ignore=shutil.ignore_patterns("__pycache__"))
    settings, objective, row, recipe = (block.text for block in blocks(PAGE) if block.language == "python")
    (package / "training/objectives/rloo.py").write_text(objective, encoding="utf-8")
    method = package / "config/method.py"
    replaced(method, "ObjectiveConfig = Annotated[", f"{settings}\n\nObjectiveConfig = Annotated[")
    replaced(method, "TrajectoryBalanceConfig | GrpoConfig |", "TrajectoryBalanceConfig | RlooConfig | GrpoConfig |")
    table = package / "training/objectives/__init__.py"
    replaced(table, '    "grpo": Grpo,\n', f'    "grpo": Grpo,\n{row}')
    replaced(
        table,
        "from typing import Any\n",
        "from typing import Any\n\nfrom pacedrl.training.objectives.rloo import Rloo\n",
    )
    replaced(package / "recipes.py", '    "tb": Recipe(', f'{recipe}    "tb": Recipe(')
    return folder


def test_the_objective_of_the_walk_trains(copy: Path) -> None:
    arguments = [
        "recipe=rloo",
        "run.steps=3",
        "run.dir=run",
        "sampling.prompts_per_step=8",
        "eval.every=0",
        "data.eval=[]",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pacedrl.cli", "train", str(ROOT / "examples/demo.yaml"), *arguments],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PACEDRL_CACHE": str(copy / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (copy / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows)
    # At the policy that sampled, log π_θ − log π_old is 0, and so is this loss; its gradient is not.
    assert all(abs(row["loss/objective"]) < 1e-4 for row in rows)
