"""A real pretrained model, from a GGUF file, on real data. `make smollm2` fetches it, `make test-slow` runs this."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacedrl.cli import main

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "smollm2"
SVAMP = ROOT.parent / "shared" / "data" / "svamp" / "SVAMP.json"


@pytest.mark.slow
def test_trains_resumes_and_saves_a_model_that_came_as_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not MODEL.exists():
        pytest.skip("models/smollm2 is absent: run `make smollm2`")
    if not SVAMP.exists():
        pytest.skip(f"SVAMP.json is absent: expected at {SVAMP}")
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    arguments = [
        "train",
        "examples/smollm2_svamp.yaml",
        f"run.dir={run}",
        f"data.train.source={SVAMP}",
        f"data.eval.source={SVAMP}",
        "data.train.limit=8",
        "data.eval.limit=2",
        "sampling.prompts_per_step=2",
        "sampling.max_new_tokens=12",
        "checkpoint.every=1",
    ]
    assert main([*arguments, "run.steps=1"]) == 0
    assert main([*arguments, "run.steps=2"]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["mismatch/logprob_mean"] < 1e-4 for row in rows)
    sample = json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    assert sample["prompt"][0]["role"] == "system"
    checkpoint = run / "checkpoints" / "step-00002"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
