"""Bad input: exit code 2, one line that says what is wrong and what to do, and no files written."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import CommandLine, Result, tiny_run

GOOD_ROWS = "".join(json.dumps({"prompt": f"copy:{i}=", "answer": str(i)}) + "\n" for i in range(10, 20))


def complaint(result: Result) -> str:
    """The only line on standard error of a command that refused its input."""
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("pacedrl: ")
    assert result.out == ""
    return lines[0]


def refusal(cli: CommandLine, *overrides: str, config: str = "c.yaml", **sections: Any) -> str:
    """The message of training for a bad configuration, after which no new file may exist."""
    if not (cli.folder / config).exists():
        cli.write(config, tiny_run(**sections))
    before = {path.name for path in cli.folder.iterdir()}
    line = complaint(cli("train", config, *overrides))
    assert {path.name for path in cli.folder.iterdir()} - before <= {"cache"}
    return line


def task(**settings: Any) -> dict[str, Any]:
    """The data section of one training task, by default read from a file."""
    return {"train": [{"source": "rows.jsonl", "verifier": "exact", **settings}], "eval": []}


def test_the_real_command_prints_one_line_too(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run())
    line = complaint(cli("train", "c.yaml", "sampling.max_prompt_tokens=3", real=True))
    assert "sampling.max_prompt_tokens" in line
    assert not (cli.folder / "run").exists()


@pytest.mark.parametrize(
    ("sections", "unknown", "nearest"),
    [
        ({"objective": {"betta": 0.1}}, "objective.betta", "objective.beta"),
        ({"sampler": {"group_size": 4}}, "sampler", "sampling"),
        ({"data": {"train": [{"sorce": "skills"}]}}, "data.train.0.sorce", "data.train.source"),
        ({"model": {"lora": {"rr": 4}}}, "model.lora.rr", "model.lora.r"),
    ],
)
def test_unknown_key(cli: CommandLine, sections: dict[str, Any], unknown: str, nearest: str) -> None:
    line = refusal(cli, **sections)
    assert "c.yaml" in line
    assert f"unknown key '{unknown}': did you mean '{nearest}'?" in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.step=3", "'run.steps'"),
        ("run.steps", "expected section.key=value"),
        ("run.steps.more=3", "'steps' is not a section"),
        ("run.steps=[3", "not valid YAML"),
        ("run.steps=many", "run.steps"),
        ("run.steps=0", "run.steps"),
        ("run=5", "run"),
        ("selection.target_accuracy=1.5", "command line: selection.target_accuracy: expected at most 1, got 1.5"),
        ("selection.target_accuracy=-0.1", "command line: selection.target_accuracy: expected at least 0, got -0.1"),
        ("selection.target_accuracy=.nan", "selection.target_accuracy"),
        ("sampling.group_size=1", "command line: sampling.group_size: expected at least 2, got 1"),
        ("objective.beta=0", "objective.beta"),
        ("objective.beta=.nan", "objective.beta"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate"),
        ("eval.k=[1,16]", "k = 16 needs at least as many samples"),
        ("eval.k=[]", "eval.k"),
        ("run.device=gpu", "run.device"),
    ],
)
def test_bad_setting(cli: CommandLine, override: str, said: str) -> None:
    assert said in refusal(cli, override)


def test_missing_config_file(cli: CommandLine) -> None:
    line = complaint(cli("train", "missing.yaml"))
    assert "missing.yaml" in line
    assert "No such file" in line


@pytest.mark.parametrize("content", ["a: [1, 2\n", "\tx: 1\n", "a: b: c\n", "just text\n", "- run\n", "\x00\x01"])
def test_config_that_is_not_a_mapping(cli: CommandLine, content: str) -> None:
    cli.write("c.yaml", content)
    line = refusal(cli)
    assert "c.yaml" in line
    assert "not valid YAML" in line or "expected a mapping of sections" in line


@pytest.mark.parametrize("content", ["model:\n", "model: tiny\n", "data: []\n", "data: {train: [skills]}\n", "run:\n"])
@pytest.mark.parametrize("verb", ["train", "eval", "doctor"])
def test_section_that_is_not_a_mapping(cli: CommandLine, content: str, verb: str) -> None:
    cli.write("c.yaml", content)
    arguments = ["tiny", "--config", "c.yaml", "--tasks", "skills"] if verb == "eval" else ["c.yaml"]
    if verb == "eval" and content.startswith("data"):
        arguments = arguments[:3]
    complaint(cli(verb, *arguments))


def test_missing_data_file_and_the_nearest_one(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    line = refusal(cli, data=task(source="row.jsonl"))
    assert "row.jsonl: no such file" in line
    assert "did you mean rows.jsonl" in line


def test_broken_row_is_named_by_file_and_line(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS + '{"prompt": "copy:1=", "ans\n')
    line = refusal(cli, data=task())
    assert "rows.jsonl: line 11" in line
    assert "not valid JSON" in line


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_dataset(cli: CommandLine, content: str) -> None:
    cli.write("rows.jsonl", content)
    line = refusal(cli, data=task())
    assert "rows.jsonl" in line
    assert "no rows" in line


def test_missing_column(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    line = refusal(cli, data=task(columns={"prompt": "promt"}))
    assert "rows.jsonl: line 1: no column 'promt'" in line
    assert "did you mean 'prompt'" in line
    (cli.folder / "c.yaml").unlink()
    cli.write("rows.jsonl", '{"prompt": "copy:1="}\n')
    line = refusal(cli, data=task())
    assert "no answer column" in line
    assert "columns.answer" in line


def test_built_in_verifier_that_rejects_every_gold_answer(cli: CommandLine) -> None:
    cli.write("rows.jsonl", "".join(f'{{"prompt": "copy:{i}=", "answer": "none, really"}}\n' for i in range(10)))
    line = refusal(cli, data=task(verifier="numeric"))
    assert "the verifier 'numeric' rejects all 10 gold answers" in line
    assert "columns.answer" in line
    assert "verifier.check_gold=false" in line


@pytest.mark.parametrize("body", ["return [0.0]", "raise ValueError('two\\nlines')", "return 3", "return ['yes']"])
def test_users_verifier_that_rejects_every_gold_answer(cli: CommandLine, body: str) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    cli.write("mine.py", f"def reward(completions, **_):\n    {body}\n")
    line = refusal(cli, data=task(verifier="mine.py:reward"))
    assert "mine.py:reward' rejects all 10 gold answers" in line


def test_gold_answers_are_checked_on_held_out_tasks_too(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    cli.write("mine.py", "def reward(completions, **_):\n    return [0.0]\n")
    held_out = [{"source": "rows.jsonl", "name": "mine", "verifier": "mine.py:reward"}]
    assert "task mine:" in refusal(cli, data=task() | {"eval": held_out})


def test_prompt_longer_than_the_limit(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS + '{"prompt": "copy:1234567890=", "answer": "1234567890"}\n')
    line = refusal(cli, data=task(), sampling={"max_prompt_tokens": 9})
    assert "1 of 11 prompts are longer than sampling.max_prompt_tokens = 9" in line
    assert "copy:1234567890=" in line
    assert "data.overlong=drop" in line
    assert cli("train", "c.yaml", "data.overlong=drop", "run.steps=1").code == 0


def test_every_prompt_longer_than_the_limit(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    assert "every prompt" in refusal(cli, data=task() | {"overlong": "drop"}, sampling={"max_prompt_tokens": 2})


def test_prompt_and_answer_longer_than_the_context(cli: CommandLine) -> None:
    line = refusal(cli, "sampling.max_new_tokens=510")
    assert "context of 512 tokens" in line
    assert "lower sampling.max_new_tokens" in line


def test_prompt_alone_longer_than_the_context(cli: CommandLine) -> None:
    cli.write("rows.jsonl", GOOD_ROWS + json.dumps({"prompt": f"copy:{'1' * 600}=", "answer": "1"}) + "\n")
    line = refusal(cli, data=task(), sampling={"max_prompt_tokens": 1024})
    assert "context of 512 tokens" in line


@pytest.mark.parametrize("folder", ["file/run", "file", "/proc/pacedrl", "/dev/null/run"])
def test_unwritable_run_folder(cli: CommandLine, folder: str) -> None:
    cli.write("file", "a file\n")
    line = refusal(cli, f"run.dir={folder}")
    assert f"run.dir: cannot write to '{folder}'" in line
    assert "choose another with run.dir=PATH" in line
    assert (cli.folder / "file").read_text() == "a file\n"


@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        ("exakt", "did you mean 'exact'"),
        ("nothing.py:reward", "there is no Python file"),
        ("mine.py:rewrad", "did you mean 'reward'"),
        ("mine.py:LIMIT", "expected a function"),
        ("broken.py:reward", "importing broken.py failed: ValueError: at import"),
        ("no.such.module:reward", "no.such.module"),
    ],
)
def test_unknown_verifier(cli: CommandLine, verifier: str, said: str) -> None:
    cli.write("rows.jsonl", GOOD_ROWS)
    cli.write("mine.py", "LIMIT = 3\n\ndef reward(completions, **_):\n    return [0.0]\n")
    cli.write("broken.py", "raise ValueError('at import')\n")
    assert said in refusal(cli, data=task(verifier=verifier))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": {"skills": ["revers"]}}, "unknown skill 'revers'"),
        ({"options": {"sizes": 3}}, "unknown option 'sizes'"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_unknown_skill(cli: CommandLine, settings: dict[str, Any], said: str) -> None:
    line = refusal(cli, data={"train": [{"source": "skills", **settings}], "eval": []})
    assert said in line
    assert "known" in line


def test_local_model_that_does_not_exist_or_is_invalid(cli: CommandLine) -> None:
    assert "model.name: cannot load './nowhere'" in refusal(cli, "model.name=./nowhere")
    (cli.folder / "empty").mkdir()
    assert "model.name: cannot load './empty'" in refusal(cli, "model.name=./empty")
    cli.write("empty/config.json", "{not json")
    assert "model.name: cannot load './empty'" in refusal(cli, "model.name=./empty")
    cli.write("empty/config.json", '{"model_type": "llama"}')
    assert "model.name: cannot load './empty'" in refusal(cli, "model.name=./empty")


def test_damaged_weights(cli: CommandLine) -> None:
    from pacedrl.assets import TINY_MODEL

    (cli.folder / "model").mkdir()
    for path in Path(TINY_MODEL).iterdir():
        (cli.folder / "model" / path.name).write_bytes(path.read_bytes())
    weights = cli.folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.name: cannot load './model'" in refusal(cli, "model.name=./model")


def test_hub_model_without_network_fails_quickly(cli: CommandLine) -> None:
    start = time.perf_counter()
    line = refusal(cli, "model.name=nobody/no-such-model")
    assert time.perf_counter() - start < 10
    assert "model.name: cannot load 'nobody/no-such-model'" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu(cli: CommandLine) -> None:
    assert "run.device: 'cuda' needs a GPU, but torch sees none; use 'cpu' or 'auto'" in refusal(cli, "run.device=cuda")


def test_too_few_prompts_for_a_step(cli: CommandLine) -> None:
    line = refusal(cli, "sampling.prompts_per_step=65")
    assert "sampling.prompts_per_step: a step needs 65 prompts" in line
    assert "only 64" in line


@pytest.mark.parametrize("section", ["train", "eval"])
def test_two_tasks_with_the_same_name(cli: CommandLine, section: str) -> None:
    twice = [{"source": "skills"}, {"source": "skills", "options": {"seed": 1}}]
    line = refusal(cli, data={"train": [{"source": "skills"}], "eval": [], section: twice})
    assert f"data.{section}: 2 tasks are called 'skills'" in line


def test_no_training_data(cli: CommandLine) -> None:
    assert "data.train" in refusal(cli, data={"train": [], "eval": []})


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_tracker_that_is_not_installed(cli: CommandLine, tracker: str) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    line = refusal(cli, f"tracking.trackers=[{tracker}]")
    assert f"'{tracker}' is not installed" in line
    assert 'pip install "pacedrl[trackers]"' in line


def test_unknown_tracker(cli: CommandLine) -> None:
    assert "tracking.trackers" in refusal(cli, "tracking.trackers=[mlflow]")
