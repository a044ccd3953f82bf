"""In a notebook or at a prompt everything works, except a reward that is not in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_process import SERVER_ENVIRONMENT, tiny_run

REWARD = """
def reward(completions, answer, **_):
    return [float(text.strip() == gold) for text, gold in zip(completions, answer)]
"""
IN_A_CELL = """
try:
    load(reward)
except InputError as error:
    print("refused:", error)
"""
SETUP = """
import threading
from pathlib import Path
from pacedrl import Trainer
from pacedrl.config import parse_config
from pacedrl.errors import InputError
from pacedrl.view import ConsoleView

def load(verifier, steps=1):
    tree = dict({tree!r})
    tree["data"] = {{"train": {{"source": "skills", "options": {{"size": 64}}, "verifier": verifier}}}}
    tree["run"] = {{**tree["run"], "steps": steps}}
    return parse_config(tree)
"""
TRAIN = """
from my_reward import reward
Trainer(load(reward))
print(Trainer(load(reward)).train().step)  # the cell was run again before training
with ConsoleView() as view:
    print(Trainer(load("my_reward.py:reward", steps=2), view).train().step)
steps = []
thread = threading.Thread(target=lambda: steps.append(Trainer(load(reward, steps=3)).train().step))
thread.start()
thread.join()
print(steps[0])
"""
SAID = "put it in a file (begin its cell with %%writefile my_reward.py)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    for name, value in SERVER_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def setup() -> str:
    tree: dict[str, Any] = tiny_run()
    return SETUP.format(tree={name: tree[name] for name in ("run", "sampling", "replay", "verifier")})


def test_at_a_prompt(folder: Path) -> None:
    """``__main__`` has no file, as in a notebook."""
    (folder / "my_reward.py").write_text(REWARD)
    program = setup() + REWARD + IN_A_CELL + TRAIN
    result = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    refused, *steps = result.stdout.splitlines()
    assert SAID in refused
    assert steps == ["1", "2", "3"], result.stderr


def test_in_a_notebook(folder: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [setup(), REWARD, IN_A_CELL, f"%%writefile my_reward.py\n{REWARD}", TRAIN]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs if "text" in output)
    assert SAID in said
    assert [line for line in said.splitlines() if line.isdecimal()] == ["1", "2", "3"]
