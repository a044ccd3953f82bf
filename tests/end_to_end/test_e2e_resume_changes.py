"""What may change when a run is resumed, and what is refused in one line that names it."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import yaml
from cli_process import CommandLine, Result, snapshot, tiny_run
from safetensors.torch import load_file, save_file

from pacedrl.assets import TINY_MODEL
from pacedrl.training.state import load_state, save_state

ROWS = [{"prompt": f"copy:{i}=", "answer": str(i), "hint": f"h{i}", "note": "n"} for i in range(10, 34)]
REWARD = """
def reward(completions, answer, hint):
    assert hint[0].startswith("h")
    return [float(text.strip() == gold) for text, gold in zip(completions, answer)]
"""


def rows_text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(cli: CommandLine) -> CommandLine:
    """Two steps on a file of rows, by a function that reads the columns ``answer`` and ``hint``."""
    cli.write("rows.jsonl", rows_text(ROWS))
    cli.write("reward.py", REWARD)
    task = {"source": "rows.jsonl", "verifier": "reward.py:reward"}
    held = {"source": "rows.jsonl", "verifier": "exact", "name": "held", "limit": 4}
    cli.write("c.yaml", tiny_run(run={"steps": 2}, data={"train": [task], "eval": [held]}))
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    return cli


def resume(run: CommandLine, *overrides: str) -> Result:
    return run("train", "c.yaml", "run.steps=3", *overrides)


def assert_goes_on(run: CommandLine, *overrides: str) -> Result:
    result = resume(run, *overrides)
    assert result.code == 0, result.err
    assert "resuming after step 2" in result.err
    assert [row["step"] for row in run.rows("run/metrics.jsonl")] == [1, 2, 3]
    return result


def assert_refused(run: CommandLine, result: Result, *said: str) -> None:
    assert result.code == 2, result.err
    assert len(result.err.splitlines()) == 1, result.err
    for text in (*said, "run.dir=PATH"):
        assert text in result.err, result.err
    assert [row["step"] for row in run.rows("run/metrics.jsonl")] == [1, 2]


def test_memory_speed_and_places(run: CommandLine) -> None:
    assert_goes_on(
        run,
        "optimizer.tokens_per_micro_batch=64",
        "optimizer.gradient_checkpointing=true",
        "sampling.batch_size=4",
        "sampling.server_patience_s=1",
        "sampling.server_timeout_s=1",
        "sampling.gpu_memory=0.9",
        "model.attn_implementation=eager",
        "verifier.workers=2",
        "checkpoint.keep=5",
    )


def test_data_model_and_verifier_that_moved(run: CommandLine) -> None:
    here = run.folder
    (here / "elsewhere").mkdir()
    for name in ("rows.jsonl", "reward.py"):
        (here / name).rename(here / "elsewhere" / name)
    (here / "elsewhere" / "rows.jsonl").rename(here / "elsewhere" / "renamed.jsonl")
    shutil.copytree(TINY_MODEL, here / "model")
    assert_goes_on(
        run,
        "data.train.source=elsewhere/renamed.jsonl",
        "data.train.verifier=elsewhere/reward.py:reward",
        "data.eval.source=elsewhere/renamed.jsonl",
        "model.name=model",
    )


def test_rows_added_reordered_and_with_columns_that_nothing_reads(run: CommandLine) -> None:
    more = [{"prompt": "copy:99=", "answer": "99", "hint": "h99", "note": ""}]
    run.write("rows.jsonl", rows_text([*more, *({**row, "note": "other", "new": 1} for row in reversed(ROWS))]))
    assert_goes_on(run)


def test_an_evaluation_task_that_was_added(run: CommandLine) -> None:
    config = yaml.safe_load((run.folder / "c.yaml").read_text())
    config["data"]["eval"].append({"source": "rows.jsonl", "verifier": "exact", "name": "more", "skip": 4, "limit": 4})
    run.write("c.yaml", config)
    result = assert_goes_on(run)
    before, *_, after = run.rows("run/eval.jsonl")
    assert "more/pass@1" not in before
    assert "more/pass@1" in after
    table = [line.split() for line in result.out.splitlines()]
    assert any(line[:1] == ["held"] for line in table)
    assert not any(line[:1] == ["more"] for line in table), "it was not measured before training"
    assert run("report", "run").code == 0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.beta=0.1", "objective.beta = 0.05 (now 0.1)"),
        ("run.seed=1", "run.seed = 0 (now 1)"),
        ("sampling.temperature=0.9", "sampling.temperature = 1.0 (now 0.9)"),
        ("optimizer.learning_rate=1e-3", "optimizer.learning_rate = 0.0002 (now 0.001)"),
        ("recipe=grpo", "recipe = 'paced' (now 'grpo')"),
        ("data.train.verifier=exact", "data.train.0.verifier = 'reward.py:reward' (now 'exact')"),
        ("data.train.skip=1", "data.train.0.skip = 0 (now 1)"),
        ("data.train.prompt_template='{prompt} '", "data.train.0.prompt_template = None (now '{prompt} ')"),
        ("data.train.extra_rewards=[{name: a, verifier: exact, weight: 1}]", "data.train.0.extra_rewards"),
    ],
)
def test_what_changes_training_is_named_with_both_values(run: CommandLine, override: str, said: str) -> None:
    before = snapshot(run.folder / "run")
    assert_refused(run, resume(run, override), said)
    assert snapshot(run.folder / "run") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: {**row, "hint": "h"}, "24 are now tokenised or judged otherwise"),
        (lambda row: {**row, "answer": row["answer"] + "0"}, "24 are no longer in data.train"),
        (lambda row: {**row, "prompt": row["prompt"] + " "}, "24 are no longer in data.train"),
    ],
)
def test_rows_that_changed_in_the_same_file(run: CommandLine, change: Any, said: str) -> None:
    run.write("rows.jsonl", rows_text([change(row) for row in ROWS]))
    assert_refused(run, resume(run), said, "step-00002")


def test_another_tokenizer_with_the_same_weights(run: CommandLine) -> None:
    shutil.copytree(TINY_MODEL, run.folder / "model")
    path = run.folder / "model" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["1"], vocabulary["2"] = vocabulary["2"], vocabulary["1"]
    path.write_text(json.dumps(tokenizer))
    assert_refused(run, resume(run, "model.name=model"), "22 are now tokenised or judged otherwise")


def test_another_model_names_both(run: CommandLine) -> None:
    shutil.copytree(TINY_MODEL, run.folder / "model")
    weights = load_file(run.folder / "model" / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, run.folder / "model" / "model.safetensors", metadata={"format": "pt"})
    assert_refused(run, resume(run, "model.name=model"), "model.name = 'tiny' (now 'model')")


def test_a_checkpoint_that_does_not_say_how_prompts_were_read(run: CommandLine) -> None:
    """Earlier versions wrote such checkpoints; the settings of the data must then stay the same."""
    state = run.folder / "run" / "checkpoints" / "step-00002" / "state"
    trainer = load_state(state, "trainer")
    del trainer["prompts"]
    save_state(state, "trainer", trainer)
    (run.folder / "other.jsonl").write_text((run.folder / "rows.jsonl").read_text())
    assert_refused(run, resume(run, "data.train.source=other.jsonl"), "data.train.0.source = 'rows.jsonl' (now")
    assert_goes_on(run)


def test_a_run_that_lost_its_configuration(run: CommandLine) -> None:
    (run.folder / "run" / "config.yaml").unlink()
    assert_refused(run, resume(run), "run/config.yaml: is missing")
    shutil.copy(run.folder / "c.yaml", run.folder / "run" / "config.yaml")
    assert_goes_on(run)
