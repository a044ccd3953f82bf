"""A run whose server dies and comes back gives the same result as one whose server does not die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from vllm_fake import FakeVllm

from pacedrl.cli import main

STEPS = 4


def configured(folder: Path, name: str, servers: list[FakeVllm], **sections: Any) -> Path:
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / name), "steps": STEPS},
        "data": {
            "train": {"source": "skills", "options": {"size": 24}},
            "eval": {"source": "skills", "split": "test", "options": {"size": 4}},
        },
        "sampling": {
            "engine": "vllm_server",
            "servers": [server.url for server in servers],
            "server_patience_s": 60.0,
            "prompts_per_step": 3,
            "group_size": 4,
            "max_prompt_tokens": 40,
            "max_new_tokens": 8,
        },
        "optimizer": {"learning_rate": 1e-3},
        "eval": {"samples": 2, "k": [1]},
        "verifier": {"workers": 1},
    } | sections
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder / f"{name}.yaml"


def start(config: Path, processes: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PACEDRL_CACHE": str(config.parent / "cache"), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, "-m", "pacedrl.cli", "train", str(config)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(run: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / log).read_text().splitlines()]


def weights(run: Path) -> dict[str, Any]:
    (file,) = (run / f"checkpoints/step-{STEPS:05d}").glob("*model.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("processes", "sections"), [(1, {}), pytest.param(2, {"scale": {"shard": True}}, marks=pytest.mark.slow)]
)
def test_a_run_goes_on_without_a_server_and_with_one_that_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, sections: dict[str, Any]
) -> None:
    steady, dying = FakeVllm(), FakeVllm()
    died: list[int] = []

    def die_in_the_second_step(number: int) -> None:
        log = tmp_path / "dying" / "metrics.jsonl"
        if not died and log.exists() and log.read_text():
            died.append(number)
            dying.die()
            time.sleep(1.0)
            dying.start()

    dying.before = die_in_the_second_step
    process = start(configured(tmp_path, "dying", [dying], **sections), processes)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    assert main(["train", str(configured(tmp_path, "steady", [steady]))]) == 0
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    steady.die()
    dying.die()
    assert died
    assert f"{dying.url}: is back, with the current weights" in said
    assert dying.received == steady.received + 1
    groups = [
        [(row["step"], row["keys"], row["rewards"]) for row in rows(tmp_path / run, "groups.jsonl")]
        for run in ("steady", "dying")
    ]
    assert groups[0] == groups[1]
    assert [row["rollouts/generated"] for row in rows(tmp_path / "dying", "metrics.jsonl")] == [12, 24, 36, 48]
    one, other = (weights(tmp_path / run) for run in ("steady", "dying"))
    assert max(float((tensor - other[name]).abs().max()) for name, tensor in one.items()) < 2e-5


def test_the_doctor_asks_the_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit, small, lost = FakeVllm(), FakeVllm(), FakeVllm()
    small.about["max_model_len"] = 40
    lost.die()
    assert main(["doctor", str(configured(tmp_path, "fit", [fit]))]) == 0
    assert f"ok  server {fit.url}: 1 × cpu, room for 4,096 tokens, 48 needed" in capsys.readouterr().out
    assert main(["doctor", str(configured(tmp_path, "unfit", [small, lost]))]) == 2
    said = capsys.readouterr().out
    assert f"fail  sampling.servers: {small.url} has room for 40 tokens" in said
    assert f"fail  sampling.servers: {lost.url} does not answer (Connection refused)" in said
    assert fit.received == small.received == 0
    for server in (fit, small):
        server.die()
