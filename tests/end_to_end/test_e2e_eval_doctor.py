"""`pacedrl eval` and `pacedrl doctor` by the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_process import SERVER_ENVIRONMENT, CommandLine, FinishedRun, snapshot, tiny_run
from test_e2e_bad_input import complaint

from pacedrl.config import ModelConfig, parse_config
from pacedrl.doctor import _memory
from pacedrl.policy.memory import GIB, estimate
from pacedrl.policy.policy import Policy
from pacedrl.tasks.attacks import ATTACKS

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo.yaml"
EVAL = ("eval", "tiny", "sampling.max_new_tokens=12")


def test_table_and_json_file(cli: CommandLine) -> None:
    result = cli(*EVAL, "--tasks", "skills", "--k", "1,2,4", "--limit", "6", "--json", "out.json")
    assert result.code == 0, result.err
    for text in ("pass@1", "pass@2", "pass@4", "mean@8", "distinct", "skills", "tiny"):
        assert text in result.out
    written = json.loads((cli.folder / "out.json").read_text())
    assert written["model"] == "tiny"
    (task,) = written["results"]
    assert (task["task"], task["prompts"], task["errors"]) == ("skills", 6, 0)
    figures = task["figures"]
    assert 0 < figures["pass@1"]["mean"] < figures["pass@2"]["mean"] < figures["pass@4"]["mean"] <= 1
    assert figures["pass@1"]["mean"] == pytest.approx(figures["mean@8"]["mean"])
    for figure in figures.values():
        assert figure["low"] <= figure["mean"] <= figure["high"]
    for name in ("pass@1", "pass@2", "pass@4", "mean@8"):
        assert f"{figures[name]['mean']:.2f}" in result.out


def test_standard_output_is_pure_json(cli: CommandLine) -> None:
    result = cli(*EVAL, "--tasks", "skills", "--samples", "4", "--k", "4", "--limit", "3", "--json", "-")
    assert result.code == 0, result.err
    assert set(json.loads(result.out)["results"][0]["figures"]) >= {"pass@4", "mean@4"}
    assert [path.name for path in cli.folder.iterdir()] == []


def test_several_tasks_of_several_kinds(cli: CommandLine) -> None:
    cli.write("mine.jsonl", '{"prompt": "copy:12=", "answer": "12"}\n{"prompt": "copy:34=", "answer": "34"}\n')
    result = cli(*EVAL, "--tasks", "skills", "mine.jsonl", "--limit", "4", "--json", "-")
    assert result.code == 0, result.err
    found = [(task["task"], task["prompts"]) for task in json.loads(result.out)["results"]]
    assert found == [("skills", 4), ("mine", 2)]


@pytest.mark.parametrize(("model", "row"), [("tiny", 0), ("run/checkpoints/step-00006", -1)])
def test_a_checkpoint_scores_as_in_its_run(full_run: FinishedRun, model: str, row: int) -> None:
    result = full_run.cli("eval", model, "--config", "c.yaml", "--json", "-")
    assert result.code == 0, result.err
    (task,) = json.loads(result.out)["results"]
    logged = full_run.cli.rows("run/eval.jsonl")[row]
    for name, figure in task["figures"].items():
        assert figure["mean"] == logged[f"held/{name}"], name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "tiny"], "--tasks"),
        (["eval", "./nowhere", "--tasks", "skills"], "model.name: cannot load './nowhere'"),
        ([*EVAL, "--tasks", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        ([*EVAL, "--tasks", "skills", "--k", "9", "--samples", "4"], "k = 9 needs at least as many samples"),
        ([*EVAL, "--tasks", "skills", "--k", "many"], "k"),
        ([*EVAL, "--tasks", "skills", "--k", "0"], "eval.k"),
        ([*EVAL, "--tasks", "skills", "--k", "]"], "--k"),
        ([*EVAL, "--tasks", "skills", "--k", "1.5"], "--k"),
        ([*EVAL, "--tasks", "skills", "--samples", "0"], "eval.samples"),
        ([*EVAL, "--tasks", "skills", "--limit", "0"], "limit"),
        ([*EVAL, "--tasks", "skills", "skills"], "2 tasks are called 'skills'"),
        (["eval", "tiny", "--tasks", "skills"], "context of 512 tokens"),
        (["eval", "tiny", "sampling.max_new_token=3", "--tasks", "skills"], "sampling.max_new_tokens"),
        (["eval", "tiny", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_evaluation(cli: CommandLine, arguments: list[str], said: str) -> None:
    assert said in complaint(cli(*arguments))


def test_result_that_cannot_be_written(cli: CommandLine) -> None:
    result = cli(*EVAL, "--tasks", "skills", "--limit", "2", "--json", "/proc/nowhere/out.json")
    assert result.code == 2
    assert result.err.strip().splitlines()[-1].startswith("pacedrl: --json: cannot write to '/proc") or (
        "pacedrl: --json: cannot write '/proc/nowhere/out.json'" in result.err
    )
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["train", "c.yaml"], marks=pytest.mark.slow),
        [*EVAL, "--tasks", "skills", "--limit", "2", "--json", "-"],
        pytest.param(["doctor", "c.yaml"], marks=pytest.mark.slow),
    ],
)
def test_a_closed_pipe_causes_no_traceback(cli: CommandLine, arguments: list[str]) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 1}))
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pacedrl.cli", *arguments],
            cwd=cli.folder,
            env=os.environ | SERVER_ENVIRONMENT | cli.environment,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_the_example_is_ready_and_the_doctor_leaves_nothing_behind(cli: CommandLine) -> None:
    result = cli("doctor", str(EXAMPLE))
    assert result.code == 0, result.out
    assert result.out.rstrip().endswith("Ready to train.")
    assert "the verifier accepts all 4,096 gold answers" in result.out
    assert "fail" not in result.out
    for text in ("model: ", "parameters", "the model sees", "time: at most about", "memory: about"):
        assert text in result.out
    assert snapshot(cli.folder) == {}


def test_the_doctor_changes_nothing_in_a_run_folder(full_run: FinishedRun) -> None:
    before = snapshot(full_run.cli.folder)
    assert full_run.cli("doctor", "c.yaml").code == 0
    assert snapshot(full_run.cli.folder) == before


def examine(cli: CommandLine, rows: list[dict[str, Any]], *overrides: str, **task: Any) -> tuple[int, str]:
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"source": "rows.jsonl", "verifier": "numeric", **task}]
    cli.write("c.yaml", tiny_run(data={"train": tasks, "eval": []}))
    result = cli("doctor", "c.yaml", *overrides)
    assert "Traceback" not in result.err
    return result.code, result.out


ROWS = [{"prompt": f"copy:{i}=", "answer": str(i)} for i in range(10, 18)]


def test_the_doctor_lists_rejected_gold_answers(cli: CommandLine) -> None:
    code, out = examine(cli, [*ROWS, {"prompt": "copy:99=", "answer": "ninety-nine"}])
    assert "warn  task rows: the verifier rejects 1 of 9 gold answers" in out
    assert "'copy:99=' answer 'ninety-nine'" in out
    assert code == 0
    code, out = examine(cli, [{**row, "answer": "none"} for row in ROWS])
    assert "fail  task rows: the verifier rejects 8 of 8 gold answers" in out
    assert "8 of 8" in out
    assert code == 2


def test_the_doctor_finds_rewarded_completions_that_solve_nothing(cli: CommandLine) -> None:
    cli.write("lax.py", "def contains(completions, answer):\n    return [float(answer[0] in completions[0])]\n")
    code, out = examine(cli, ROWS, verifier="lax.py:contains")
    assert code == 0
    for attack in (
        "all of 0 to 999 listed (8 of 8)",
        "the prompt repeated (8 of 8)",
        "the answer denied in words (8 of 8)",
    ):
        assert attack in out
    assert "empty text" not in out
    cli.write("blind.py", "def yes(completions):\n    return [1.0 for _ in completions]\n")
    _, out = examine(cli, ROWS, verifier="blind.py:yes")
    for attack in ATTACKS:
        assert f"{attack} (8 of 8)" in out
    _, out = examine(cli, ROWS, verifier="exact")
    assert f"the verifier rewards none of {len(ATTACKS)} ways to solve nothing" in out


def test_the_doctor_finds_duplicate_prompts_with_differing_answers(cli: CommandLine) -> None:
    code, out = examine(cli, [*ROWS, {"prompt": "copy:10=", "answer": "11"}, ROWS[1]])
    assert "warn  task rows: 1 prompts occur with differing answers: 'copy:10='" in out
    assert code == 0


def test_the_doctor_lists_overlong_prompts(cli: CommandLine) -> None:
    long = {"prompt": "copy:12345678=", "answer": "12345678"}
    code, out = examine(cli, [*ROWS, long], "sampling.max_prompt_tokens=10")
    assert "fail  task rows: 9 prompts" in out
    assert "1 longer than sampling.max_prompt_tokens = 10: 'copy:12345678='" in out
    assert code == 2
    code, out = examine(cli, [*ROWS, long], "sampling.max_prompt_tokens=10", "data.overlong=drop")
    assert "warn  task rows: 9 prompts" in out
    assert code == 0


def test_the_doctor_fails_on_too_few_prompts_and_on_unloadable_models_and_data(cli: CommandLine) -> None:
    code, out = examine(cli, ROWS, "sampling.prompts_per_step=9")
    assert (code, "fail  sampling.prompts_per_step: a step needs 9 prompts" in out) == (2, True)
    code, out = examine(cli, ROWS, "recipe=lilo", "sampling.prompts_per_step=3")
    assert (code, "3 × gate.oversample = 12 prompts, but" in out) == (2, True)
    code, out = examine(cli, ROWS, "recipe=oracle", "data.train.verifier=numeric")
    assert (code, "fail  estimator.name: the oracle computes" in out) == (2, True)
    code, out = examine(cli, ROWS, "model.name=./nowhere")
    assert (code, "fail  model.name: cannot load './nowhere'" in out) == (2, True)
    code, out = examine(cli, ROWS, "sampling.max_new_tokens=510")
    assert (code, "context of 512 tokens" in out) == (2, True)
    code, out = examine(cli, [])
    assert (code, "holds no rows" in out) == (2, True)
    assert not (cli.folder / "run").exists()


@pytest.mark.parametrize(
    ("settings", "share", "said"),
    [
        ({}, 1.1, ""),
        ({}, 0.9, "lower sampling.batch_size"),
        ({"sampling": {"batch_size": 1}}, 0.9, "set optimizer.gradient_checkpointing=true"),
        (
            {"sampling": {"batch_size": 1}, "optimizer": {"gradient_checkpointing": True}},
            0.9,
            "lower optimizer.tokens_per_micro_batch",
        ),
        ({}, 0.0, "set model.lora.r=16, or scale.shard=true on several GPUs"),
    ],
)
def test_the_doctor_says_what_needs_the_memory_and_what_to_change(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], share: float, said: str
) -> None:
    policy, config = Policy.load(ModelConfig(), torch.device("cpu")), parse_config(settings)
    needed = estimate(policy, config)
    sizes = {"SC_AVPHYS_PAGES": int(share * needed.peak), "SC_PHYS_PAGES": 0, "SC_PAGE_SIZE": 1}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    check = _memory(policy, config)
    assert check.level == ("warn" if said else "ok")
    assert check.text.startswith(f"memory: about {needed.peak / GIB:,.1f} GiB (states {needed.states / GIB:,.1f}, ")
    assert check.text.endswith(f"GiB available{said and '; '}{said}")


def test_the_resolved_configuration_of_a_run_is_a_configuration(full_run: FinishedRun, cli: CommandLine) -> None:
    cli.write("again.yaml", yaml.safe_load((full_run.folder / "config.yaml").read_text()))
    result = cli("train", "again.yaml", "run.dir=again", "run.steps=1")
    assert result.code == 0, result.err
