"""What init writes for models that think, templates that take no system message, and puzzles in columns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from pacedrl.assets import TINY_MODEL
from pacedrl.cli import main
from pacedrl.config import Config, load_config
from pacedrl.tasks.datasets import load_task

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}" + PLAIN
DROPS = PLAIN.replace("in messages", "in messages if m.role != 'system'")
SWITCH = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
THINKS = PLAIN + "<think>\n"
WORDS = [{"prompt": f"Name a colour, not {n}", "answer": ("red", "green")[n % 2]} for n in range(20)]
SUMS = [{"problem": f"What is {n} / 7?", "answer": f"\\frac{{{n}}}{{7}}"} for n in range(20)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], str]:
    """The tiny model with a chat template."""

    def make(template: str) -> str:
        folder = tmp_path / "model"
        shutil.copytree(TINY_MODEL, folder, dirs_exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return "model"

    return make


def rows(values: list[Any], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    return name


def written(*arguments: str) -> Config:
    assert main(["init", "c.yaml", "--force", *arguments]) == 0
    return load_config(Path("c.yaml"))


def asked(config: Config) -> list[Any]:
    """The first prompt of training and of evaluation."""
    return [load_task(task).prompts[0].content for task in (*config.data.train, *config.data.eval)]


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_without_system_messages_the_question_has_the_instruction(template: str, model: Callable[..., str]) -> None:
    config = written("--data", rows(SUMS), "--model", model(template))
    instruction = "Think step by step, and put the final answer in \\boxed{}."
    assert asked(config) == [
        [{"role": "user", "content": f"What is {n} / 7?\n\n{instruction}"}] for n in (len(SUMS) // 5, 0)
    ]
    held_out = rows([{"in": {"text": row["problem"]}, "answer": row["answer"]} for row in SUMS], "held.jsonl")
    arguments = ["--data", rows(SUMS), "--eval", held_out, "--prompt-column", "in.text"]
    assert main(["init", "d.yaml", "--model", "model", *arguments]) == 2  # the training rows have no such column
    held_out = rows([{"input": row["problem"], "answer": row["answer"]} for row in SUMS], "held.jsonl")
    config = written("--data", rows(SUMS), "--eval", held_out, "--model", "model")
    assert asked(config) == [[{"role": "user", "content": f"What is 0 / 7?\n\n{instruction}"}]] * 2
    assert config.data.eval[0].columns == {}


def test_chat_rows_stay_unchanged_with_a_warning(model: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    chats = [{"prompt": [{"role": "user", "content": row["problem"]}], "answer": row["answer"]} for row in SUMS]
    config = written("--data", rows(chats), "--model", model(REFUSES))
    assert asked(config)[1] == chats[0]["prompt"]
    assert "Careful: the model's chat template takes no system message" in capsys.readouterr().out
    assert written("--data", "rows.jsonl", "--model", model(PLAIN)).data.train[0].system_prompt is not None


def test_a_thinking_model_gets_more_new_tokens(model: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    config = written("--data", rows(SUMS), "--model", model(SWITCH))
    text = Path("c.yaml").read_text()
    assert config.sampling.max_new_tokens == 256  # half of a context of 512; 512 where there is room
    assert "includes the model's thoughts" in text
    assert "# chat_template_kwargs: {enable_thinking: false}" in text
    assert config.data.train[0].chat_template_kwargs == {}
    capsys.readouterr()
    for template in (SWITCH, THINKS):
        config = written("--data", rows(WORDS), "--model", model(template))
        assert config.data.train[0].verifier == "exact"
        assert (config.data.train[0].chat_template_kwargs, config.sampling.max_new_tokens) == ({}, 256)
        assert "Careful" not in capsys.readouterr().out
    assert written("--data", rows(WORDS), "--model", model(PLAIN)).sampling.max_new_tokens == 16


@pytest.mark.parametrize("chats", [False, True])
def test_a_puzzle_in_columns_becomes_a_prompt(chats: bool, model: Callable[..., str]) -> None:
    table = pa.table({"target": [6] * 20, "nums": [[1, 2, 3 + n] for n in range(20)]})
    pq.write_table(table, "rows.parquet")
    config = written("--data", "rows.parquet", *(["--model", model(PLAIN)] if chats else []))
    (task,) = config.data.train
    assert (task.verifier, task.columns, task.chat, task.system_prompt) == ("countdown", {}, chats, None)
    assert "the prompt is built from the row, the answer in numbers and target" in Path("c.yaml").read_text()
    (prompt,) = load_task(config.data.eval[0]).prompts[:1]
    assert prompt.answer == {"numbers": [1, 2, 3], "target": 6}
    assert prompt.question.startswith(
        "Use each of the numbers [1, 2, 3] exactly once, with + - * / and parentheses, to"
    )
    assert prompt.question.endswith("between <answer> and </answer>.")


@pytest.mark.parametrize(
    ("row", "verifier"),
    [
        ({"prompt": "Play.", "nums": [1, 2, 3], "target": 6}, "countdown"),
        ({"prompt": "Play.", "ground_truth": '{"numbers": [1, 2, 3], "target": 6}'}, "countdown"),
        ({"quiz": "Who is a knight?", "names": ["Zoey"], "solution": [True]}, "knights_knaves"),
        ({"prompt": "How many?", "nums": [1, 2, 3], "target": 6, "answer": 3}, "numeric"),
    ],
)
def test_the_verifier_of_a_game_is_found(row: dict[str, Any], verifier: str) -> None:
    prompt = next(iter(row))
    config = written("--data", rows([{**row, prompt: f"{row[prompt]} {n}"} for n in range(20)]))
    assert config.data.train[0].verifier == verifier
    assert config.data.train[0].prompt_template is None


def test_a_held_out_source_uses_its_own_split(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, part in (("both/train", WORDS), ("both/validation", WORDS[:3]), ("one/train", WORDS[:4])):
        Path(name).parent.mkdir(exist_ok=True)
        rows(part, f"{name}.jsonl")
    config = written("--data", rows(SUMS), "--eval", "both")
    assert (config.data.eval[0].split, len(load_task(config.data.eval[0]).prompts)) == ("validation", 3)
    config = written("--data", rows(SUMS), "--eval", "one")
    assert (config.data.eval[0].split, len(load_task(config.data.eval[0]).prompts)) == ("train", 4)
