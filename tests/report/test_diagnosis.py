"""Every rule fires on logs with its problem, states the figures, and is silent on a healthy run."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from altered import altered, grown, held_out, with_groups

import pacedrl
from pacedrl import Config
from pacedrl.diagnosis import rules
from pacedrl.diagnosis.rules import Finding
from pacedrl.report.findings import diagnose
from pacedrl.report.held_out import headline
from pacedrl.report.run import RunLogs, load_run

Train = Callable[..., Path]


def only(run: RunLogs) -> Finding:
    findings = diagnose(run)
    assert len(findings) == 1, findings
    return findings[0]


def only_other_than(id: str, run: RunLogs) -> Finding:
    (found,) = [finding for finding in diagnose(run) if finding.id != id]
    return found


def test_a_healthy_run_shows_nothing(run: RunLogs) -> None:
    assert diagnose(run) == []
    assert diagnose(replace(run, metrics=[], groups=[], samples=[], evals=[])) == []


def test_completions_that_are_cut(train: Train) -> None:
    data = {"train": [{"source": "skills", "options": {"size": 32}}], "eval": []}
    run = load_run(train("cut", run={"steps": 2}, data=data, sampling={"max_new_tokens": 2, "prompts_per_step": 8}))
    finding = next(finding for finding in diagnose(run) if finding.id == "truncated")
    shares = [row["completion/truncated"] for row in run.metrics]
    assert finding.text == f"{sum(shares) / 2:.0%} of completions were cut at 2 tokens"
    assert "raise sampling.max_new_tokens (2)" in finding.remedy
    assert finding.severity == "bad"


def test_a_verifier_that_fails(train: Train, tmp_path: Path) -> None:
    reward = tmp_path / "moody.py"
    reward.write_text(
        "def reward(completions, answer, **_):\n"
        "    if len(completions[0]) % 2:\n        raise ValueError('<odd>')\n"
        "    return [float(completions[0] == answer[0])]\n"
    )
    task = {"source": "skills", "options": {"size": 32}, "verifier": f"{reward}:reward"}
    run = load_run(train("moody", run={"steps": 2}, data={"train": [task], "eval": []}, verifier={"check_gold": False}))
    finding = next(finding for finding in diagnose(run) if finding.id == "verifier-errors")
    share = sum(row["verifier/errors"] for row in run.metrics) / 128
    assert 0.05 < share < 1
    assert f"failed on {share:.0%} of completions" in finding.text
    assert finding.text.endswith("ValueError: <odd>")


def test_losses_that_are_not_finite(train: Train) -> None:
    data = {"train": [{"source": "skills", "options": {"size": 64}}], "eval": []}
    run = load_run(train("wild", run={"steps": 12}, data=data, optimizer={"learning_rate": 1e30}))
    finding = next(finding for finding in diagnose(run) if finding.id == "not-finite")
    skipped = [row["step"] for row in run.metrics if row["optim/skipped_updates"]]
    assert f"in {len(skipped)} of {len(run.metrics)} steps, the last of them {skipped[-1]}" in finding.text
    assert finding.text.endswith("this ended the run")
    assert "optimizer.learning_rate (1e+30)" in finding.remedy


def test_prompts_that_are_all_too_hard(train: Train, tmp_path: Path) -> None:
    rows = [{"prompt": f"add:{10**8 + 7919 * i}=", "answer": str(10**8 + 7919 * i)[::-1] * 2} for i in range(32)]
    (tmp_path / "hard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"source": str(tmp_path / "hard.jsonl"), "verifier": "exact"}
    run = load_run(train("hard", run={"steps": 5}, data={"train": [task], "eval": []}))
    finding = only(run)
    assert finding.id == "no-mixed-groups"
    assert finding.text.startswith(
        "No group had both right and wrong completions for 5 steps, mean reward 0.00: the prompts are too hard"
    )
    easy = altered(run, {"reward/mean": 1.0})
    assert "the prompts are too easy" in only(easy).text
    unjudged = altered(run, {"reward/mean": None})
    assert "no-mixed-groups" not in {finding.id for finding in diagnose(unjudged)}  # neither too hard nor too easy
    assert diagnose(replace(run, metrics=run.metrics[:4])) == []  # as the alarm in training: five in a row
    once = altered(grown(run, 60), {"reward/mixed_groups": 0.5}, since=35)
    assert "no-mixed-groups" not in {finding.id for finding in diagnose(once)}  # it was so earlier, but is no longer


def test_no_rise_on_held_out_prompts(run: RunLogs) -> None:
    level = held_out(held_out(grown(run, 60), "reverse", 0.4, 0.5, 0.4, 0.405), "sort", 0.4, 0.3, 0.4, 0.405)
    finding = only(level)
    assert (finding.id, finding.severity) == ("not-learning", "warn")
    assert "0.400 → 0.405 (+0.005, 95% interval -0.005 to +0.015)" in finding.text
    assert headline(level).startswith("No significant change: held-out pass@1 (mean of 2 tasks) 0.400 → 0.405")
    worse = held_out(held_out(grown(run, 60), "reverse", 0.4, 0.5, 0.4, 0.37), "sort", 0.4, 0.3, 0.4, 0.37)
    assert only(worse).severity == "bad"
    assert headline(worse).startswith("Getting worse")
    early = replace(worse, metrics=worse.metrics[:30], evals=[row | {"step": row["step"] // 2} for row in worse.evals])
    assert only(early).text == only(worse).text.replace("60 steps", "30 steps")  # a fall is one at any step
    fallen = held_out(held_out(worse, "reverse", 0.98, 0.9, 0.5, 0.3), "sort", 0.98, 0.9, 0.5, 0.3)
    assert only_other_than("forgetting", fallen).id == "not-learning"  # and from any height
    assert only(worse).remedy == "lower optimizer.learning_rate (0.0002), or raise objective.beta (0.05)"
    wide = held_out(held_out(level, "reverse", 0.4, 0.5, 0.4, 0.405, half=0.2), "sort", 0.4, 0.3, 0.4, 0.405, half=0.2)
    assert diagnose(wide) == []  # these evaluations could not have shown a rise
    early = replace(level, metrics=level.metrics[:20], evals=[row | {"step": row["step"] // 3} for row in level.evals])
    assert diagnose(early) == []
    solved = held_out(held_out(grown(run, 60), "reverse", 1, 1, 1, 1), "sort", 1, 1, 1, 1)
    assert diagnose(solved) == []


def test_what_was_learned_and_is_lost_again(run: RunLogs) -> None:
    peak = held_out(held_out(grown(run, 60), "reverse", 0.3, 0.6, 0.9, 0.4), "sort", 0.3, 0.6, 0.8, 0.4)
    finding = only(peak)
    assert (finding.id, finding.severity) == ("past-its-best", "warn")
    assert finding.text == "Past its best: held-out pass@1 0.850 at step 40, 0.400 now"
    assert finding.remedy.startswith("take the checkpoint of step 40 if it is kept")
    assert headline(peak).startswith("Learning")  # since the start, and not since its best
    noise = held_out(held_out(peak, "reverse", 0.3, 0.5, 0.6, 0.52, half=0.1), "sort", 0.3, 0.5, 0.6, 0.52, half=0.1)
    assert diagnose(noise) == []


def test_a_task_that_was_forgotten(run: RunLogs) -> None:
    lost = held_out(held_out(run, "reverse", 0.9, 0.8, 0.7, 0.6), "sort", 0.1, 0.5, 0.8, 0.9)
    finding = only(lost)
    assert finding.id == "forgetting"
    assert finding.text == "Forgotten since the start: held-out pass@1 of reverse 0.90 → 0.60"
    assert finding.remedy.startswith("set selection.explore_fraction to 0.1 (now 0), or lower optimizer.learning_rate")
    for selection in ({"method": "uniform"}, {"method": "nearest", "explore_fraction": 0.1}):
        other = replace(lost, config=lost.config | {"selection": selection})
        assert only(other).remedy == "lower optimizer.learning_rate (0.0002)"
    noise = held_out(lost, "reverse", 0.9, 0.8, 0.7, 0.6, half=0.25)
    assert diagnose(noise) == []
    assert headline(lost).startswith("Learning: held-out pass@1 (mean of 2 tasks) 0.500 → 0.750 (+0.250, 95% interval")


def test_estimates_that_miss(run: RunLogs) -> None:
    long = grown(run, 60)
    assert diagnose(long) == []
    wrong = with_groups(long, lambda row: {"accuracy_estimate": [0.95] * len(row["keys"])})
    finding = only(wrong)
    rows = [row for row in wrong.groups if row["step"] > 40]
    missed = [abs(0.95 - sum(r) / 8) for row in rows for r in row["rewards"]]
    assert finding.id == "not-calibrated"
    assert f"Z is not calibrated: MAE {sum(missed) / len(missed):.2f} after 60 steps" in finding.text
    assert "(0.07 by chance with 8 samples per prompt)" in finding.text  # of p = 0.95
    assert finding.remedy == "set partition.name=closed_form"
    assert diagnose(with_groups(grown(run, 48), lambda row: {"accuracy_estimate": [0.95] * 8})) == []  # too early

    def ideal(row: dict[str, Any]) -> dict[str, Any]:
        return {"accuracy_estimate": [0.5] * 8, "rewards": [[1.0] * 4 + [0.0] * 4] * 8}

    assert diagnose(with_groups(long, ideal)) == []


@pytest.mark.parametrize(
    ("change", "id", "text", "remedy"),
    [
        ({"kl/old_beta": 0.05}, "kl-large", "β·KL is large: 0.050", "lower optimizer.learning_rate (0.0002)"),
        (
            {"estimator/stale": 0.41},
            "stale-estimates",
            "stale for 41% of prompts",
            "raise selection.explore_fraction",
        ),
        ({"replay/trained": 40.0}, "replay-dominates", "62% of the completions", "lower replay.capacity (8)"),
        (
            {"mismatch/logprob_mean": 0.2},
            "sampler-trainer-gap",
            "disagree by 0.2 nats per token",
            "attn_implementation=eager",
        ),
        ({"gate/capped": 1.0, "gate/kept": 3.0}, "gate-capped", "kept only 3 groups", "gate.max_batches"),
        (
            {"entropy": 0.01, "reward/mixed_groups": 0.1, "reward/mean": 0.4},
            "entropy-collapse",
            "0.01 nats per token, 10% of groups mixed at a mean reward of 0.40",
            "lower optimizer.learning_rate",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "-" in value and " " not in value else "",
)
def test_rules_on_one_metric(run: RunLogs, change: dict[str, float], id: str, text: str, remedy: str) -> None:
    long = grown(run, 60)
    finding = only(altered(long, change, since=30))
    assert finding.id == id
    assert text in finding.text
    assert remedy in finding.remedy
    assert diagnose(altered(altered(long, change, since=10), long.metrics[-1] | change, since=61)) != []
    mended = altered(altered(long, change), {name: long.metrics[-1][name] for name in change}, since=30)
    assert diagnose(mended) == []  # a problem that has passed is not a finding


def test_remedies_name_what_the_run_can_change(run: RunLogs, grpo: Path) -> None:
    off = altered(grown(run, 60), {"kl/old_beta": 0.05}, since=30)
    several = off.config | {"optimizer": off.config["optimizer"] | {"epochs": 2}}
    assert only(replace(off, config=several)).remedy == "lower optimizer.epochs (2) or optimizer.learning_rate (0.0002)"
    ahead = off.config | {"sampling": off.config["sampling"] | {"ahead": True}}
    assert only(replace(off, config=ahead)).remedy.startswith("set sampling.ahead to false, or lower")
    skipped = altered(grown(load_run(grpo), 60), {"optim/skipped_updates": 1.0}, since=60)
    assert only(skipped).remedy == "lower optimizer.learning_rate (0.0002)"  # this objective has no beta
    gradient = altered(skipped, {"grad_norm": math.nan}, since=60)
    assert only(gradient).text.startswith("The gradient of a finite loss was not finite in 1 of 60 steps")
    assert "model.attn_implementation=eager" in only(gradient).remedy


def test_similar_figures_without_a_problem_give_no_finding(run: RunLogs) -> None:
    long = grown(run, 60)
    ahead = altered(long, {"mismatch/logprob_mean": 0.2, "rollouts/age": 1.0})
    assert diagnose(ahead) == []  # drawn by the policy of a step earlier
    right = altered(long, {"entropy": 0.001, "reward/mixed_groups": 0.05, "reward/mean": 0.97}, since=30)
    assert diagnose(right) == []  # sure and right


def test_headlines_without_enough_evaluations(run: RunLogs) -> None:
    once = replace(run, evals=run.evals[:1])
    assert re.search(r", at step 8, 512 rollouts\.$", headline(replace(run, evals=run.evals[:-1])))  # when it was known
    assert headline(once).startswith("At step 12. Whether it learns is not known yet: one evaluation so far")
    assert headline(replace(run, evals=[])) == (
        "At step 12. Whether it learns is not known: nothing is held out; set data.eval."
    )
    assert headline(replace(run, metrics=[])) == "No step is finished yet."


def test_a_run_of_a_recipe_without_estimates_is_diagnosed_too(grpo: Path) -> None:
    assert diagnose(load_run(grpo)) == []
    assert diagnose(grown(load_run(grpo), 60)) == []


def test_settings_named_in_remedies_and_in_the_guide_exist() -> None:
    here = Path(pacedrl.__file__).parent
    files = ("diagnosis/symptoms.md", "diagnosis/rules.py", "report/panels.py", "training/alarms.py")
    text = "".join((here / name).read_text() for name in files)
    known: dict[str, set[str]] = {}
    for section, info in Config.model_fields.items():
        variants = getattr(info.annotation, "__args__", None) or (info.annotation,)
        known[section] = {name for variant in variants for name in getattr(variant, "model_fields", {})}
    named = set(re.findall(r"(?<![/\w.])(" + "|".join(known) + r")\.([a-z_]+)\b(?!\(|\.py)", text))
    named = {(section, name) for section, name in named if section != "run"}  # in the code it is a RunLogs
    assert len(named) > 20
    assert [f"{section}.{name}" for section, name in sorted(named) if name not in known[section]] == []


def test_every_rule_has_its_paragraph_in_the_guide_and_every_paragraph_its_rule() -> None:
    text = (Path(pacedrl.__file__).parent / "diagnosis/symptoms.md").read_text()
    anchors = set(re.findall(r"^### .+ \{#symptom-([a-z-]+)\}$", text, re.M))
    functions = {name for name, value in vars(rules).items() if inspect.isfunction(value) and name[0] != "_"}
    assert anchors == {name.replace("_", "-") for name in functions - {"dataclass"}}
