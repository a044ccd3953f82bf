"""Follow docs/first_run.md as written, with fewer steps."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pacedrl.cli import main, parse

PAGE = (Path(__file__).resolve().parents[1] / "docs/first_run.md").read_text(encoding="utf-8")
FEWER = ["run.steps=3", "sampling.prompts_per_step=4", "data.eval.limit=4", "data.train.limit=32", "verifier.workers=1"]


def commands() -> list[list[str]]:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", prose, re.M)]


def snippet(name: str) -> str:
    (code,) = re.findall(rf"```python\n# {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)
    return str(code)


def test_the_page_on_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    Path("rows.py").write_text(snippet("rows.py"))
    install, make_rows, init, doctor, train, report, other = commands()
    assert install[:3] == ["python3", "-m", "venv"]
    assert make_rows[0] == "python"
    subprocess.run([sys.executable, *make_rows[1:]], check=True, env=os.environ)
    assert len(Path("rows.jsonl").read_text().splitlines()) == 300

    assert main(init[1:]) == 0
    assert "240 prompts to train on, 60 held out" in capsys.readouterr().out
    source = Path("reward.py").read_text()
    changed = re.sub(r"^def score\(.*?(?=^def )", snippet("in reward.py") + "\n\n", source, flags=re.M | re.DOTALL)
    assert changed != source
    Path("reward.py").write_text(changed)

    assert main([*doctor[1:], *FEWER]) == 0
    said = capsys.readouterr().out
    assert "Ready to train" in said
    assert re.search(r"warn .*rewards completions that solve nothing", said)
    assert main([*train[1:], *FEWER]) == 0
    said = capsys.readouterr().out
    assert "96 rollouts in 3 steps" in said
    assert "pass@8" in said
    assert yaml.safe_load(Path("runs/my/config.yaml").read_text())["data"]["train"][0]["verifier"] == "reward.py:reward"
    assert report[1:] == ["report", "runs/my"]

    options = parse(other[1:])
    assert (options.verb, options.model) == ("init", "Qwen/Qwen2.5-1.5B-Instruct")
