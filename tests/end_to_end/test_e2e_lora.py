"""Checkpoints of LoRA runs, and adapters from elsewhere, wherever a model is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_process import CommandLine, tiny_run
from transformers import AutoModelForCausalLM

from pacedrl.assets import TINY_MODEL

peft = pytest.importorskip("peft")
LORA = {"r": 8}
STEP = "run/checkpoints/step-00004"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Four steps of LoRA that change what the model answers."""
    cli = CommandLine(tmp_path_factory.mktemp("lora"))
    settings = {"learning_rate": 5e-3}
    cli.write("c.yaml", tiny_run(run={"steps": 4}, model={"lora": LORA}, optimizer=settings, eval={"every": 0}))
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    return cli


def pass_at_1(cli: CommandLine, model: str, *more: str) -> float:
    result = cli("eval", model, "--config", "c.yaml", "--json", "-", *more)
    assert result.code == 0, result.err
    value: float = json.loads(result.out)["results"][0]["figures"]["pass@1"]["mean"]
    return value


def test_evaluated_as_it_was_trained_with_and_without_lora_in_the_configuration(trained: CommandLine) -> None:
    first, last = trained.rows("run/eval.jsonl")
    before, after = first["held/pass@1"], last["held/pass@1"]
    assert any(last[key] != first[key] for key in last if key.startswith("held/"))
    assert pass_at_1(trained, STEP) == after
    assert pass_at_1(trained, STEP, "model.lora=null") == after
    assert pass_at_1(trained, "tiny") == before


@pytest.mark.parametrize("lora", [None, LORA], ids=["the whole model", "a new adapter"])
def test_another_run_starts_from_the_merged_weights(trained: CommandLine, lora: dict[str, int] | None) -> None:
    name = f"next-{bool(lora)}"
    overrides = (f"model.name={STEP}", f"model.lora={yaml.safe_dump(lora, default_flow_style=True).split(chr(10))[0]}")
    result = trained("train", "c.yaml", f"run.dir={name}", "run.steps=1", *overrides)
    assert result.code == 0, result.err
    assert "is an adapter, merged into its base model" in " ".join(result.err.split())
    first, last = trained.rows(f"{name}/eval.jsonl")
    assert first["held/pass@1"] == trained.rows("run/eval.jsonl")[-1]["held/pass@1"]
    assert pass_at_1(trained, f"{name}/checkpoints/step-00001") == last["held/pass@1"]
    resumed = trained("train", "c.yaml", f"run.dir={name}", "run.steps=2", *overrides)
    assert resumed.code == 0, resumed.err
    assert "resuming after step 1" in resumed.err


def test_doctor_and_calibrate_and_init_know_it(trained: CommandLine) -> None:
    doctor = trained("doctor", "c.yaml", f"model.name={STEP}")
    assert doctor.code == 0, doctor.out
    assert "is an adapter, merged into its base model" in doctor.out
    trained.write("rows.jsonl", "".join(f'{{"prompt": "copy:{i}=", "answer": "{i}"}}\n' for i in range(100, 180)))
    assert trained("init", "new.yaml", "--model", STEP, "--data", "rows.jsonl").code == 0
    pytest.importorskip("matplotlib")
    assert trained("calibrate", "run", "--prompts", "4", "--samples", "2").code == 0


def adapter_from_elsewhere(folder: Path, base: Path | str, settings: Any = None) -> None:
    """An adapter as peft alone saves it, without a tokenizer or our files. Its random weights ruin every answer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL)
    settings = settings or peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, lora_alpha=256)
    adapted = peft.get_peft_model(model, settings)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder, save_embedding_layers=False)


def test_an_adapter_from_elsewhere(trained: CommandLine) -> None:
    adapter_from_elsewhere(trained.folder / "theirs", TINY_MODEL)
    assert pass_at_1(trained, "theirs") < 0.1 < pass_at_1(trained, "tiny")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("base", "is an adapter of '/nowhere/base': cannot load '/nowhere/base'"),
        ("weights", "adapter_model.safetensors is cut off or damaged"),
        ("settings", "adapter_config.json is cut off or damaged"),
        ("nameless", "adapter_config.json does not name a base model"),
        ("prompt tuning", "cannot merge the adapter 'bad'"),
    ],
)
def test_an_unusable_adapter_is_refused_in_one_line(cli: CommandLine, damage: str, said: str) -> None:
    folder = cli.folder / "bad"
    prompt_tuning = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    base = "/nowhere/base" if damage == "base" else TINY_MODEL
    adapter_from_elsewhere(folder, base, prompt_tuning if damage == "prompt tuning" else None)
    config = folder / "adapter_config.json"
    if damage == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"12345678")
    elif damage == "settings":
        config.write_text("{")
    elif damage == "nameless":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": None}))
    cli.write("c.yaml", tiny_run())
    for arguments in (("eval", "bad", "--config", "c.yaml"), ("train", "c.yaml", "model.name=bad")):
        result = cli(*arguments)
        assert result.code == 2, result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert said in result.err
