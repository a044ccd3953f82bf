"""A whole run from the command line, and the files it writes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from statistics import mean

import pytest
import torch
import transformers
import yaml
from cli_process import CommandLine, FinishedRun, snapshot, tiny_run, workers_of

import pacedrl

METRICS = [
    "step",
    "rollouts/generated",
    "rollouts/trained",
    "tokens/generated",
    "reward/mean",
    "reward/mixed_groups",
    "accuracy/estimate_mean",
    "accuracy/observed_mean",
    "accuracy/mae",
    "accuracy/spearman",
    "kl/old",
    "loss/objective",
    "loss/partition",
    "grad_norm",
    "entropy",
    "completion/length_mean",
    "completion/truncated",
    "verifier/errors",
    "replay/size",
    "replay/age_mean",
    "time/select",
    "time/generate",
    "time/verify",
    "time/update",
    "time/step",
]
"""Keys that every row of metrics.jsonl must have."""


def test_a_run_succeeds_and_ends_with_a_table(full_run: FinishedRun) -> None:
    code, out, err = full_run.result.code, full_run.result.out, full_run.result.err
    assert code == 0, err
    assert "pass@1 before" in out
    assert "pass@4 before" in out
    assert "held" in out
    assert "96 rollouts in 6 steps. Run folder: run" in out
    assert "step 6/6  reward" in err
    assert "Traceback" not in err


def test_the_folder_holds_what_is_promised_and_nothing_else(full_run: FinishedRun) -> None:
    assert sorted(path.name for path in full_run.cli.folder.iterdir()) == ["c.yaml", "cache", "run"]
    assert sorted(path.name for path in full_run.folder.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "eval.jsonl",
        "groups.jsonl",
        "metrics.jsonl",
        "samples.jsonl",
    ]


def test_config_yaml_is_the_resolved_configuration_with_versions(full_run: FinishedRun) -> None:
    resolved = yaml.safe_load((full_run.folder / "config.yaml").read_text())
    versions = resolved.pop("versions")
    assert versions["pacedrl"] == pacedrl.__version__
    assert versions["torch"] == str(torch.__version__)
    assert versions["transformers"] == transformers.__version__
    assert {"numpy", "python"} <= set(versions)
    # defaults, resolved
    assert resolved["recipe"] == "paced"
    assert resolved["objective"] == {"name": "trajectory_balance", "beta": 0.05, "log_z": "learned"}
    assert resolved["optimizer"]["learning_rate"] == 2e-4  # given
    pacedrl.Config.model_validate(resolved)


def test_every_row_of_metrics_has_every_promised_key(full_run: FinishedRun) -> None:
    rows = full_run.cli.rows("run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert not set(METRICS) - set(row), f"step {row['step']}"
        assert all(isinstance(value, int | float) or value is None for value in row.values())


def test_every_row_has_every_promised_key_also_without_replay(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 2}, replay={"enabled": False}))
    assert cli("train", "c.yaml").code == 0
    for row in cli.rows("run/metrics.jsonl"):
        assert not set(METRICS) - set(row)


def test_the_figures_of_a_step_fit_together(full_run: FinishedRun) -> None:
    rows = full_run.cli.rows("run/metrics.jsonl")
    trained = 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        trained += row["rollouts/step"] + row["replay/trained"]
        assert row["rollouts/generated"] == 16 * row["step"]
        assert row["rollouts/trained"] == trained
        assert row["tokens/generated"] == pytest.approx(
            (before["tokens/generated"] if before else 0) + 16 * row["completion/length_mean"]
        )
        assert 0 <= row["reward/mean"] <= 1
        assert row["accuracy/observed_mean"] == pytest.approx(row["reward/mean"])
        assert row["accuracy/bias"] == pytest.approx(row["accuracy/estimate_mean"] - row["accuracy/observed_mean"])
        assert row["grad_norm"] > 0
        # With one update per batch, sampler and trainer have the same policy: the KL is 0 and log-probabilities agree.
        assert abs(row["kl/old"]) < 1e-3
        assert row["mismatch/logprob_max"] < 1e-4
        phases = sum(row[f"time/{name}"] for name in ("select", "generate", "verify", "update", "observe"))
        assert 0 < phases <= row["time/step"]
    assert rows[0]["accuracy/estimate_mean"] == pytest.approx(0.5, abs=1e-6)  # the prior, before any result
    assert rows[-1]["accuracy/estimate_mean"] != pytest.approx(0.5, abs=1e-3)


def test_evaluations_are_at_the_start_every_n_steps_and_at_the_end(full_run: FinishedRun, cli: CommandLine) -> None:
    rows = full_run.cli.rows("run/eval.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert [row["rollouts/generated"] for row in rows] == [0, 48, 96]
    for row in rows:
        for name in ("pass@1", "pass@4", "mean@4", "distinct"):
            assert row[f"held/{name}_low"] <= row[f"held/{name}"] <= row[f"held/{name}_high"]
        assert row["held/pass@1"] <= row["held/pass@4"]
    cli.write("c.yaml", tiny_run(run={"steps": 4}))
    assert cli("train", "c.yaml").code == 0
    assert [row["step"] for row in cli.rows("run/eval.jsonl")] == [0, 3, 4]  # the end, though 4 is no multiple of 3


def test_samples_show_completions_with_key_reward_and_estimate(full_run: FinishedRun) -> None:
    rows = full_run.cli.rows("run/samples.jsonl")
    assert [row["step"] for row in rows] == [step for step in range(1, 7) for _ in range(4)]
    for row in rows:
        assert len(row["key"]) == 16
        assert row["reward"] == float(row["completion"] == row["answer"])
        assert 0 <= row["accuracy_estimate"] <= 1
        assert row["error"] is None


def test_checkpoints_are_loadable_by_transformers_and_the_newest_are_kept(full_run: FinishedRun) -> None:
    folders = sorted((full_run.folder / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00004", "step-00006"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[-1])
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[-1])
    prompt = tokenizer("copy:12=", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(generated[0], skip_special_tokens=True).startswith("copy:12=")
    older = transformers.AutoModelForCausalLM.from_pretrained(folders[0])
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), older.parameters(), strict=True)]
    assert all(moved)


def test_nothing_in_a_run_folder_is_a_pickle(full_run: FinishedRun) -> None:
    names = {name.rpartition(".")[2] for name in snapshot(full_run.folder)}
    assert names == {"json", "jsonl", "safetensors", "yaml"}


@pytest.mark.parametrize(("every", "keep", "kept"), [(4, 1, [6]), (4, 2, [4, 6]), (25, 2, [6]), (1, 3, [4, 5, 6])])
def test_the_last_step_is_always_kept(cli: CommandLine, every: int, keep: int, kept: list[int]) -> None:
    cli.write("c.yaml", tiny_run(checkpoint={"every": every, "keep": keep}, data={"eval": []}))
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    assert sorted(path.name for path in (cli.folder / "run" / "checkpoints").iterdir()) == [
        f"step-{step:05d}" for step in kept
    ]
    assert "pass@1" not in result.out  # without held-out tasks there is no table


def test_the_same_seed_gives_the_same_run_and_another_seed_another(full_run: FinishedRun, cli: CommandLine) -> None:
    def rewards(cli: CommandLine, folder: str) -> list[float]:
        return [row["loss/objective"] for row in cli.rows(f"{folder}/metrics.jsonl")]

    cli.write("c.yaml", tiny_run())
    assert cli("train", "c.yaml").code == 0
    assert cli("train", "c.yaml", "run.seed=1", "run.dir=other").code == 0
    assert rewards(cli, "run") == rewards(full_run.cli, "run")
    assert rewards(cli, "other") != rewards(cli, "run")


def test_without_replay_nothing_is_replayed(full_run: FinishedRun, cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(replay={"enabled": False}))
    assert cli("train", "c.yaml").code == 0
    rows = cli.rows("run/metrics.jsonl")
    assert [row["replay/trained"] for row in rows] == [0] * 6
    assert [row["replay/size"] for row in rows] == [0] * 6
    assert rows[-1]["rollouts/trained"] == 96
    with_replay = full_run.cli.rows("run/metrics.jsonl")
    assert with_replay[0]["replay/trained"] == 0
    assert all(row["replay/trained"] > 0 for row in with_replay[1:])
    for before, row in itertools.pairwise(with_replay):
        assert row["replay/trained"] == before["replay/size"] <= 8
        assert row["replay/admitted"] <= 4
    assert rows[0]["loss/objective"] == with_replay[0]["loss/objective"]
    assert rows[-1]["loss/objective"] != with_replay[-1]["loss/objective"]


def test_no_verifier_process_outlives_a_run(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 1}))
    running = cli.start("train", "c.yaml")
    assert running.wait().code == 0
    assert workers_of(running.pid) == []


def test_tensorboard_gets_every_step_when_asked(cli: CommandLine) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cli.write("c.yaml", tiny_run(run={"steps": 3}, tracking={"trackers": ["tensorboard"]}))
    result = cli("train", "c.yaml")
    assert result.code == 0, result.err
    events = list((cli.folder / "run").rglob("events.out.tfevents.*"))
    assert events
    scalars = {}
    for path in events:
        accumulator = event_accumulator.EventAccumulator(str(path))
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars[tag] = [(event.step, event.value) for event in accumulator.Scalars(tag)]
    rows = cli.rows("run/metrics.jsonl")
    assert [step for step, _ in scalars["reward/mean"]] == [1, 2, 3]
    assert [value for _, value in scalars["reward/mean"]] == pytest.approx([row["reward/mean"] for row in rows])
    assert [step for step, _ in scalars["eval/held/pass@1"]] == [0, 3]
    assert not any(math.isnan(value) for values in scalars.values() for _, value in values)


def test_help_and_version(cli: CommandLine) -> None:
    overview = cli("--help", real=True)
    assert overview.code == 0
    for verb in ("train", "eval", "doctor"):
        assert verb in overview.out
        own = cli(verb, "--help")
        assert own.code == 0
        assert f"example: pacedrl {verb}" in own.out
    version = cli("--version", real=True)
    assert (version.code, version.out) == (0, f"pacedrl {pacedrl.__version__}\n")


def test_every_prompt_of_a_step_is_logged_with_its_estimate_and_verdicts(full_run: FinishedRun) -> None:
    steps = full_run.cli.rows("run/metrics.jsonl")
    for row, step in zip(full_run.cli.rows("run/groups.jsonl"), steps, strict=True):
        assert row["step"] == step["step"]
        assert len(set(row["keys"])) == len(row["keys"]) == len(row["rewards"])
        assert mean(row["accuracy_estimate"]) == pytest.approx(step["accuracy/estimate_mean"], abs=1e-5)
        assert mean(mean(rewards) for rewards in row["rewards"]) == pytest.approx(step["reward/mean"])
        assert sum(len(set(rewards)) > 1 for rewards in row["rewards"]) / len(row["rewards"]) == pytest.approx(
            step["reward/mixed_groups"]
        )


def test_every_step_logs_where_the_estimates_of_the_whole_training_set_stood_before_it(full_run: FinishedRun) -> None:
    rows = full_run.cli.rows("run/groups.jsonl")
    for row in rows:
        pool = row["pool"]
        assert pool["below"] + sum(pool["counts"]) + pool["above"] == 64
        bins = Counter(min(int(20 * estimate), 19) for estimate in row["accuracy_estimate"] if 0 <= estimate <= 1)
        assert all(count <= pool["counts"][i] for i, count in bins.items())
    assert rows[0]["pool"]["counts"] == [0] * 10 + [64] + [0] * 9  # nothing is known yet, so all are at the prior ½
    assert [row["estimator/stale"] for row in full_run.cli.rows("run/metrics.jsonl")] == [0.0] * 6


def test_a_budget_of_rollouts_ends_a_run_and_sets_when_it_is_evaluated(cli: CommandLine) -> None:
    # 4 prompts × 4 completions per step; LILO samples four times as many
    budget = {"run": {"steps": 99, "max_rollouts": 150}, "eval": {"every": 0, "every_rollouts": 40}}
    for recipe, a_step, evaluated in (("grpo", 16, [0, 48, 80, 128, 160]), ("lilo", 64, [0, 64, 128, 192])):
        folder = cli.folder / recipe
        cli.write(f"{recipe}.yaml", tiny_run(recipe, recipe=recipe, **budget))
        result = cli("train", f"{recipe}.yaml")
        assert result.code == 0
        assert "step 2/10 " in result.err  # at most as many, not the 99 that exceed the budget
        rows = cli.rows(f"{recipe}/metrics.jsonl")
        assert [row["rollouts/generated"] for row in rows] == [a_step * (n + 1) for n in range(-(-150 // a_step))]
        assert [row["rollouts/generated"] for row in cli.rows(f"{recipe}/eval.jsonl")] == evaluated
        assert (folder / "checkpoints" / f"step-{len(rows):05d}").exists()
