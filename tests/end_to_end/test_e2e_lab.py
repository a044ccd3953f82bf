"""Comparisons and calibration on the command line, with real runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_process import CommandLine, Result, eventually, tiny_run

from pacedrl.lab.calibrate import load_calibration
from pacedrl.lab.measures import area
from pacedrl.lab.results import Results

ROOT = Path(__file__).resolve().parents[2]
ROLLOUTS = 96  # six steps of 4 × 4
VARIANTS = {"again": ["recipe=grpo", "run.seed=7{seed}"], "broken": ["recipe=grpo", "model.name=nowhere"]}

PICKY = """
def judge(prompts, completions, answer):
    return [None if text[:1] in "01234" else float(text == gold) for text, gold in zip(completions, answer)]
"""


def tiny_comparison() -> dict[str, Any]:
    tree = tiny_run(eval={"every": 0, "every_rollouts": 32, "samples": 2, "k": [1, 2]})
    tree["data"]["eval"].append(
        {"source": "skills", "name": "other", "split": "test", "options": {"size": 8, "seed": 3}}
    )
    del tree["run"]["steps"]
    return tree


def compare(
    cli: CommandLine,
    *extra: str,
    recipes: str,
    out: str = "out",
    rollouts: int = ROLLOUTS,
    seeds: int = 2,
    real: bool = False,
) -> Result:
    cli.write("c.yaml", tiny_comparison())
    cli.write("v.yaml", VARIANTS)
    named = ["--recipes", recipes, "--variants", "v.yaml", "--rollouts", str(rollouts), "--out", out]
    return cli("compare", "c.yaml", *named, "--seeds", str(seeds), "--final-k", "1,4", "--jobs", "2", *extra, real=real)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, Result]:
    """GRPO twice with different seeds, LILO, and a variant that cannot run."""
    cli = CommandLine(tmp_path_factory.mktemp("compared"))
    return cli, compare(cli, recipes="grpo,again,lilo,broken", real=True)


def test_results_are_those_of_the_runs_logs(compared: tuple[CommandLine, Result]) -> None:
    cli, _ = compared
    results = Results.load(cli.folder / "out/results.json")
    assert (results.baseline, results.seeds, results.rollouts) == ("grpo", [0, 1], ROLLOUTS)
    for name, evaluated in (("grpo", [0, 32, 64, 96]), ("again", [0, 32, 64, 96]), ("lilo", [0, 64, 128])):
        for seed, run in results.variants[name].runs.items():
            folder = f"out/runs/{name}/seed{seed}"
            evals, steps, groups = (cli.rows(f"{folder}/{log}.jsonl") for log in ("eval", "metrics", "groups"))
            assert run.curve.rollouts == evaluated == [row["rollouts/generated"] for row in evals]
            tokens = {row["step"]: row["tokens/generated"] for row in steps}
            assert run.curve.tokens == [0, *(tokens[row["step"]] for row in evals[1:])]
            means = [(row["held/pass@1"] + row["other/pass@1"]) / 2 for row in evals]
            pairs = [(row["held/pass@2"] + row["other/pass@2"]) / 2 for row in evals]
            assert run.curve.pass_at_k == {2: pytest.approx(pairs, abs=1e-5)}
            assert run.curve.accuracy == pytest.approx(means, abs=1e-5)
            assert run.measure("area", 0.5, ROLLOUTS) == pytest.approx(area(evaluated, means, ROLLOUTS), abs=1e-5)
            mixed = [len(set(rewards)) > 1 for row in groups for rewards in row["rewards"]]
            assert run.mixed_groups == pytest.approx(np.mean(mixed), abs=1e-5)
            assert run.estimate_mae is None
            final = json.loads((cli.folder / folder / "final.json").read_text())["results"]
            figures = [task["figures"] for task in final]
            assert run.pass_at_k[4] == pytest.approx(np.mean([task["pass@4"]["mean"] for task in figures]), abs=1e-5)
    again = results.variants["again"].summary["final"]
    assert again is not None
    assert again.mean == pytest.approx(np.mean([run.pass_at_k[1] for run in results.variants["again"].runs.values()]))
    start = np.mean([run.curve.accuracy[0] for run in results.variants["grpo"].runs.values()])
    end = np.mean([run.curve.accuracy[-1] for run in results.variants["grpo"].runs.values()])
    assert results.target == pytest.approx(start + 0.9 * (end - start), abs=1e-4)
    own = results.variants["grpo"].versus_baseline["final"]
    assert own is not None
    assert (own.mean, own.low, own.high) == (0.0, 0.0, 0.0)


def test_runs_of_one_recipe_differ_by_their_seeds(compared: tuple[CommandLine, Result]) -> None:
    cli, _ = compared
    results = Results.load(cli.folder / "out/results.json")
    curves = [run.curve.accuracy for name in ("grpo", "again") for run in results.variants[name].runs.values()]
    assert len({tuple(curve[1:]) for curve in curves}) == 4
    assert "seed: 71\n" in (cli.folder / "out/runs/again/seed1/config.yaml").read_text()


def test_a_failure_is_reported_and_does_not_affect_the_other_runs(compared: tuple[CommandLine, Result]) -> None:
    cli, result = compared
    assert result.code == 1
    assert "Traceback" not in result.err
    broken = Results.load(cli.folder / "out/results.json").variants["broken"]
    assert broken.runs == {}
    assert all("model.name" in reason and "nowhere" in reason for reason in broken.failures.values())
    assert result.err.count("pacedrl: failed: broken, seed") == 2
    page = (cli.folder / "out/page.md").read_text()
    assert "broken, seed 1: model.name" in page
    assert "| broken | 0/2 |" in page
    assert "| lilo | 2/2 |" in page


def test_the_page_embeds_its_figures_and_lists_all_variants(compared: tuple[CommandLine, Result]) -> None:
    cli, result = compared
    page = (cli.folder / "out/page.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 7
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    text = (cli.folder / "out/page.md").read_text()
    assert f"2 seeds; each run generated {ROLLOUTS} completions" in text
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", text)) == {path.name for path in (cli.folder / "out").glob("*.svg")}
    rows = re.findall(r"^\| (\w+) \|", text, re.M)
    assert sorted(rows) == ["again", "broken", "grpo", "lilo", "variant"]
    assert "2 seeds, 96 rollouts each" in result.out


def test_finished_runs_are_not_repeated_and_variants_can_be_added(compared: tuple[CommandLine, Result]) -> None:
    cli, _ = compared
    shutil.copytree(cli.folder / "out", cli.folder / "more")
    before = {path: path.stat().st_mtime_ns for path in (cli.folder / "more").rglob("final.json")}
    first = (cli.folder / "more/results.json").read_bytes()
    assert compare(cli, recipes="grpo,again,lilo", out="more").code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shorter = json.loads((cli.folder / "more/results.json").read_text())
    full = json.loads(first)
    del full["variants"]["broken"]
    assert shorter == full
    kept = (cli.folder / "more/results.json").read_bytes()
    assert (
        compare(cli, recipes="lilo", out="more", seeds=1).code == 0
    )  # variants and seeds that it does not name are kept
    assert (cli.folder / "more/results.json").read_bytes() == kept
    with (cli.folder / "more/.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        busy = compare(cli, recipes="grpo", out="more")
    assert (busy.code, busy.err) == (
        2,
        "pacedrl: --out: another comparison runs in 'more'; wait for it, or choose another folder\n",
    )
    refused = compare(cli, recipes="grpo", out="more", rollouts=ROLLOUTS + 16)
    assert refused.code == 2
    assert "holds a comparison of another configuration, budget or final k" in refused.err
    cli.write("w.yaml", {"again": ["recipe=grpo", "run.seed=7{seed}", "objective.clip_low=0.1"]})
    named = ["--recipes", "grpo,again", "--rollouts", str(ROLLOUTS), "--seeds", "2", "--final-k", "1,4"]
    changed = cli("compare", "c.yaml", *named, "--variants", "w.yaml", "--out", "more")
    assert changed.code == 2
    assert (
        "variant again: more/runs/again/seed0/config.yaml: this run was started with objective.clip_low" in changed.err
    )
    assert (cli.folder / "more/results.json").read_bytes() == kept


def test_a_comparison_killed_or_interrupted_and_restarted_ends_with_the_same_results(
    compared: tuple[CommandLine, Result], tmp_path: Path
) -> None:
    reference, _ = compared
    cli = CommandLine(tmp_path)
    cli.write("c.yaml", tiny_comparison())
    cli.write("v.yaml", VARIANTS)
    command = ["compare", "c.yaml", "--recipes", "grpo,lilo", "--rollouts", str(ROLLOUTS), "--out", "out"]
    command += ["--seeds", "2", "--final-k", "1,4", "--jobs", "2"]
    for variant, log, stop in (("grpo", "metrics.jsonl", "kill"), ("lilo", "eval.jsonl", "interrupt")):
        running = cli.start(*command, real=stop == "interrupt")
        assert eventually(lambda: bool(processes_of(cli.folder)), 60)  # the logs may be those of the previous round
        path = cli.folder / f"out/runs/{variant}/seed0/{log}"
        assert eventually(lambda path=path: path.exists() and path.read_text().count("\n") >= 2, 60)  # type: ignore[misc]
        getattr(running, stop)()
        assert running.wait().code == {"kill": -9, "interrupt": 130}[stop]
        assert eventually(lambda: not processes_of(cli.folder, with_server=True), 10)
    assert cli(*command).code == 0
    ours, theirs = (json.loads((folder / "out/results.json").read_text()) for folder in (cli.folder, reference.folder))
    theirs["variants"] = {name: theirs["variants"][name] for name in ("grpo", "lilo")}
    assert ours == theirs


def processes_of(folder: Path, with_server: bool = False) -> list[int]:
    """Return the processes of a comparison's runs in this folder; ``with_server``, their fork server among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
            pid = int(entry.name)
            if (
                b"pacedrl.lab.worker" in line
                and (with_server or os.getsid(pid) == pid)  # each run has its own session
                and (entry / "cwd").resolve() == folder.resolve()
            ):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "grpoo"], "--recipes: there is no recipe or variant 'grpoo': did you mean 'grpo'?"),
        (["--recipes", "grpo,grpo"], "a name occurs twice"),
        ([], "nothing to compare: name recipes with --recipes"),
        (["--recipes", "grpo", "--baseline", "paced"], "--baseline: 'paced' is not compared; there are grpo"),
        (["--recipes", "grpo", "--seeds", "0"], "--seeds: expected more than 0, got 0"),
        (["--recipes", "grpo", "--final-k", "2,4"], "--final-k: expected whole numbers from 1, with 1 among them"),
        (
            ["--recipes", "grpo", "--count", "heldd"],
            "--count: there is no evaluation task 'heldd'; there are held, other",
        ),
        (["--variants", "bad.yaml"], "bad.yaml: variant 'mine' must be a list of section.key=value"),
        (["--variants", "name.yaml"], "name.yaml: variant 'a|b' must have a name of letters, digits"),
        (["--variants", "other.yaml"], "variant b: data.eval or eval differs from the other variants'"),
        (["--recipes", "grpo", "--target", "nan"], "--target: expected an accuracy above 0, at most 1, got nan"),
        (["--recipes", "grpo", "eval.k=[2]"], "eval.k: a comparison needs pass@1; add 1 to [2]"),
        (["--recipes", "grpo", "eval.temperature=0"], "eval.temperature: at 0 all samples are the same"),
        (["--recipes", "grpo", "data.train.source=no.jsonl"], "no.jsonl"),
        (
            ["--recipes", "lilo", "sampling.prompts_per_step=40"],
            "variant lilo: sampling.prompts_per_step: a step needs 40 × gate",
        ),
        (
            ["--recipes", "dapo", "optimizer.schedule=linear"],
            "variant dapo: optimizer.schedule: with gate.name=dynamic",
        ),
        (
            ["--recipes", "grpo", "optimizer.learning_rate=x"],
            "grpo: optimizer.learning_rate: expected a number",
        ),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(cli: CommandLine, arguments: list[str], message: str) -> None:
    cli.write("c.yaml", tiny_comparison())
    cli.write("bad.yaml", {"mine": "recipe=grpo"})
    cli.write("name.yaml", {"a|b": ["recipe=grpo"]})
    cli.write("other.yaml", {"a": ["recipe=grpo"], "b": ["recipe=grpo", "eval.samples=3"]})
    result = cli("compare", "c.yaml", "--rollouts", "64", "--out", "out", *arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (cli.folder / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_comparison())
    (cli.folder / "mine").mkdir()
    (cli.folder / "mine/config.yaml").write_text("precious: true\n")
    for out in ("mine", "c.yaml"):
        result = cli("compare", "c.yaml", "--recipes", "grpo", "--rollouts", "64", "--out", out)
        assert result.code == 2
        assert f"--out: '{out}' exists and holds no comparison; choose another folder" in result.err
    assert (cli.folder / "mine/config.yaml").read_text() == "precious: true\n"


@pytest.mark.parametrize("partition", ["mlp", "closed_form"])
def test_calibration_is_measured_on_fresh_samples(cli: CommandLine, partition: str) -> None:
    run = tiny_run(recipe="paced_plus", checkpoint={"every": 2, "keep": 9}, eval={"every": 0})
    run["partition"] = {"name": partition}
    cli.write("c.yaml", run)
    assert cli("train", "c.yaml").code == 0
    before = {path: path.read_bytes() for path in (cli.folder / "run").rglob("*") if path.is_file()}
    result = cli("calibrate", "run", "--prompts", "16", "--samples", "8")
    assert result.code == 0, result.err
    after = {path: path.read_bytes() for path in before}
    assert after == before  # calibration does not change the run
    calibration = load_calibration(cli.folder / "run/calibration.json")
    assert [checkpoint.step for checkpoint in calibration.checkpoints] == [2, 4, 6]
    metrics = {row["step"]: row for row in cli.rows("run/metrics.jsonl")}
    groups = {row["step"]: row for row in cli.rows("run/groups.jsonl")}
    for checkpoint in calibration.checkpoints:
        assert checkpoint.prompts["selected"] == 4
        seen = {key for step in range(1, checkpoint.step + 1) for key in groups[step]["keys"]}
        assert checkpoint.prompts["seen"] == min(len(seen), 16)
        assert checkpoint.prompts["never seen"] == min(64 - len(seen), 16)
        kl = [metrics[step]["kl/old_beta"] for step in (checkpoint.step - 1, checkpoint.step)]
        assert checkpoint.beta_kl == pytest.approx(np.mean(kl))
        for group, scores in checkpoint.scores.items():
            assert set(scores) == {"log Z", "combined", "counts (MoPPS)", "last group mean", "one mean for all"}
            for name, score in scores.items():
                assert abs(score.bias) <= score.mae + 1e-9, (group, name)
                assert score.mae**2 <= score.brier + 1e-9, (group, name)
            assert scores["one mean for all"].spearman is None
            by_estimator = {name: score.coverage for name, score in scores.items()}
            with_intervals = {"combined", "counts (MoPPS)"} | ({"log Z"} if partition == "closed_form" else set())
            assert {name for name, coverage in by_estimator.items() if coverage} == with_intervals
            assert all(0 <= by_estimator[name]["50%"] <= by_estimator[name]["90%"] <= 1 for name in with_intervals)
        assert checkpoint.scores["never seen"]["counts (MoPPS)"].spearman is None
    pooled = sum(bin_.prompts for bin_ in calibration.reliability["seen"]["log Z"])
    assert pooled == sum(checkpoint.prompts["seen"] for checkpoint in calibration.checkpoints)
    observed = sum(b.observed * b.prompts for b in calibration.reliability["seen"]["combined"]) / pooled
    assert observed == pytest.approx(
        sum(c.observed["seen"] * c.prompts["seen"] for c in calibration.checkpoints) / pooled, abs=1e-9
    )
    assert "data:image/svg+xml" in (cli.folder / "run/calibration.html").read_text()


def test_calibrating_a_folder_without_a_run_is_an_error(cli: CommandLine) -> None:
    assert "expected a run's folder" in cli("calibrate", "nothing").err
    cli.write("c.yaml", tiny_run(run={"steps": 1}))
    assert cli("train", "c.yaml").code == 0
    shutil.rmtree(cli.folder / "run/checkpoints")
    result = cli("calibrate", "run")
    assert result.code == 2
    assert "this run has no checkpoint yet" in result.err


def test_unjudged_completions_are_counted_in_the_results(cli: CommandLine) -> None:
    """The verifier cannot judge some completions; the results, the page and a warning say how many."""
    cli.write("picky.py", PICKY)
    rows = [{"prompt": f"copy:{i}=", "answer": str(i)} for i in range(1000, 9999, 562)]
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": "rows.jsonl", "name": "rows", "verifier": "picky.py:judge"}
    tree = tiny_comparison()
    cli.write("c.yaml", tree | {"data": {"train": [task], "eval": tree["data"]["eval"]}})
    result = cli(
        "compare",
        "c.yaml",
        "--recipes",
        "grpo,paced",
        "--rollouts",
        "32",
        "--seeds",
        "1",
        "--final-k",
        "1",
        "--out",
        "out",
    )
    assert result.code == 0, result.err
    results = Results.load(cli.folder / "out/results.json")
    page = (cli.folder / "out/page.md").read_text()
    for name, variant in results.variants.items():
        (run,) = variant.runs.values()
        groups = cli.rows(f"out/runs/{name}/seed0/groups.jsonl")
        unjudged = sum(reward is None for row in groups for rewards in row["rewards"] for reward in rewards)
        assert run.verifier_errors == unjudged > 0
        line = f"{name}: the verifier failed on {unjudged} completions, which were left out of training"
        assert line in page
        assert f"pacedrl: warning: {line}" in result.err


@pytest.mark.slow
def test_one_recipe_under_two_names_does_not_differ_and_the_oracle_beats_noise(cli: CommandLine) -> None:
    config = yaml.safe_load((ROOT / "docs/results/skills_skewed.yaml").read_text().replace("seed: 500", "seed: 300"))
    cli.write("c.yaml", config | {"data": config["data"] | {"eval": config["data"]["eval"][:1]}})
    cli.write("v.yaml", VARIANTS)
    command = [
        "compare",
        "c.yaml",
        "--variants",
        "v.yaml",
        "--recipes",
        "grpo,again,oracle,paced_noise",
        "--out",
        "out",
    ]
    command += ["--seeds", "5", "--rollouts", "6400", "--final-k", "1,4", "--jobs", "2"]
    assert cli(*command, real=True, limit_s=1200).code == 0
    again = Results.load(cli.folder / "out/results.json").variants["again"]
    for measure in ("rollouts_to_target", "area", "final", "mixed_groups"):
        difference = again.versus_baseline[measure]
        assert difference is not None
        assert difference.low is not None
        assert not difference.excludes_zero, measure
    assert cli(*command, "--baseline", "paced_noise", real=True).code == 0
    oracle = Results.load(cli.folder / "out/results.json").variants["oracle"]
    for measure, sign in (("area", 1), ("mixed_groups", 1), ("rollouts_to_target", -1)):
        difference = oracle.versus_baseline[measure]
        assert difference is not None
        assert difference.excludes_zero, measure
        assert sign * difference.mean > 0, measure
