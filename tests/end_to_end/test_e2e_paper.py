"""The paper's configurations train on a tiny random model of the architecture and rows with the same columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pacedrl import Trainer
from pacedrl.config import load_config
from pacedrl.config.load import config_tree
from pacedrl.tasks.code import sandbox

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "examples/paper").glob("*.yaml"))
RECIPES = ("paced", "grpo", "flowrl", "dapo", "lilo")
PROBLEMS = [(f"What is {i} + {i}?", str(2 * i)) for i in range(1, 17)]
TESTS = [{"input": f"{i}\n", "output": f"{2 * i}\n", "testtype": "stdin"} for i in (1, 2)]
PROGRAMS = [{"problem": f"Read a number. Print {i} times it.", "tests": json.dumps(TESTS)} for i in range(16)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "agentica-org/DeepScaleR-Preview-Dataset": [{"problem": q, "answer": a, "solution": "So."} for q, a in PROBLEMS],
    "HuggingFaceH4/aime_2024": [{"id": 60, "problem": q, "solution": "So.", "answer": a} for q, a in PROBLEMS[:2]],
    "math-ai/aime25": [{"problem": q, "answer": a, "id": "0"} for q, a in PROBLEMS[:2]],
    "math-ai/amc23": [{"id": 0, "question": q, "answer": f"{a}.0"} for q, a in PROBLEMS[:2]],
    "HuggingFaceH4/MATH-500": [{"problem": q, "solution": "So.", "answer": a, "level": 1} for q, a in PROBLEMS[:2]],
    "math-ai/minervamath": [{"question": q, "answer": a} for q, a in PROBLEMS[:2]],
    "math-ai/olympiadbench": [{"question": q, "final_answer": [a], "unit": None} for q, a in PROBLEMS[:2]],
    "agentica-org/DeepCoder-Preview-Dataset": PROGRAMS,
    "evalplus/humanevalplus": [
        {
            "task_id": "HumanEval/0",
            "prompt": 'def twice(n):\n    """Twice n."""\n',
            "canonical_solution": "    return 2 * n\n",
            "entry_point": "twice",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
        }
    ],
}
"""Columns as the datasets on the hub have them."""


def load_dataset(source: str, split: str, name: str | None = None) -> datasets.Dataset:
    assert (name is None) == (source != "agentica-org/DeepCoder-Preview-Dataset")
    rows = ROWS[source]
    if name is not None:  # its parts share no problem
        rows = [{**row, "problem": f"{name}, {split}: {row['problem']}"} for row in rows]
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of Qwen2's architecture, which both of the paper's model families have."""
    folder = tmp_path_factory.mktemp("qwen2")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "pacedrl/assets/tiny")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "qwen2", **shape, intermediate_size=48, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_resolves_with_each_recipe_to_the_papers_settings(path: Path) -> None:
    for recipe in RECIPES:
        config = load_config(path, [f"recipe={recipe}"])
        assert (config.sampling.group_size, config.sampling.temperature) == (8, 1.0)
        assert (config.sampling.max_prompt_tokens, config.sampling.max_new_tokens) == (1024, 3072)
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-6, 0.1)
        if recipe == "paced":
            assert (config.selection.method, config.selection.target_accuracy) == ("nearest", 0.5)
            assert (config.objective.name, getattr(config.objective, "beta", None)) == ("trajectory_balance", 0.05)
            assert (config.replay.capacity, config.replay.admit) == (128, 64)
        else:
            assert config.selection.method == "uniform"
            assert not config.replay.enabled


@pytest.mark.parametrize(
    ("path", "recipe"),
    [(path, "paced") for path in CONFIGS] + [(CONFIGS[-1], recipe) for recipe in RECIPES[1:]],
    ids=lambda value: value.stem if isinstance(value, Path) else value,
)
def test_two_steps_of_it_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, path: Path, recipe: str
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    text = path.read_text()
    if sandbox._why_not():
        text = text.replace("sandbox: bubblewrap", "sandbox: rlimits")
    (tmp_path / "config.yaml").write_text(text)
    smaller = ["prompts_per_step=2", "group_size=2", "max_new_tokens=8", "engine=transformers", "batch_size=16"]
    overrides = [
        f"recipe={recipe}",
        f"run.dir={tmp_path / 'run'}",
        "run.steps=2",
        "run.device=cpu",
        f"model.name={model}",
        "eval.samples=1",
        "eval.k=[1]",
        "verifier.workers=2",
        *(f"sampling.{setting}" for setting in smaller),
    ]
    trainer = Trainer(load_config(tmp_path / "config.yaml", overrides))
    assert trainer.policy.causal_lm.config.model_type == "qwen2"
    summary = trainer.train()
    rows = trainer.folder.rows("metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["verifier/errors"] == 0 for row in rows)
    tasks = {task["name"] for task in config_tree(path)["data"]["eval"]}
    assert {f"{task}/pass@1" for task in tasks} <= set(summary.evals[-1])
