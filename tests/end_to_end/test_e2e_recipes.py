"""Every recipe through the real loop on the tiny model: it trains, counts its rollouts, and resumes bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_process import tiny_run

from pacedrl import Config, InputError, Trainer
from pacedrl.interrupt import Interrupted
from pacedrl.recipes import RECIPES
from pacedrl.training import learner as learner_module
from pacedrl.training.objectives.base import LossInputs
from pacedrl.types import Completion

PROMPTS, GROUP, STEPS = 6, 4, 4


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def trainer_of(folder: Path, recipe: str, steps: int = STEPS, **sections: Any) -> Trainer:
    shape = {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": 10}
    settings: dict[str, Any] = {
        "recipe": recipe,
        "run": {"steps": steps},
        "data": {"eval": []},
        "sampling": shape,
        "checkpoint": {"every": 2},
    } | sections
    return Trainer(Config.model_validate(tiny_run(str(folder), **settings)))


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_and_resumes_bit_for_bit(tmp_path: Path, recipe: str) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    trainer = trainer_of(whole, recipe)
    before = [parameter.detach().clone() for parameter in trainer.policy.parameters()]
    trainer.train()
    after = trainer.policy.parameters()
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))

    trainer_of(halves, recipe, steps=2).train()
    trainer_of(halves, recipe).train()
    assert rows(halves) == rows(whole)
    for file in sorted((whole / f"checkpoints/step-{STEPS:05d}").rglob("*")):
        if file.is_file():
            assert (halves / file.relative_to(whole)).read_bytes() == file.read_bytes(), file

    metrics = rows(whole)
    batches = sum(row["gate/batches"] for row in metrics)
    factor = 4 if recipe == "lilo" else 1
    kept = sum(row["gate/kept"] for row in metrics)
    dropped = sum(value for row in metrics for name, value in row.items() if name.startswith("gate/dropped_"))
    assert metrics[-1]["rollouts/generated"] == (kept + dropped) * GROUP
    if not getattr(Config(recipe=recipe).gate, "adaptive_batch", False):
        assert kept + dropped == batches * PROMPTS * factor
    replayed = sum(row["replay/trained"] for row in metrics)
    assert metrics[-1]["rollouts/trained"] == kept * GROUP + replayed
    assert (replayed > 0) == Config(recipe=recipe).replay.enabled
    reads_z = Config(recipe=recipe).needs_partition
    assert all((row["loss/partition"] is not None) == reads_z for row in metrics)


def test_every_step_of_every_recipe_logs_the_same_keys(tmp_path: Path) -> None:
    keys = []
    for recipe in ("paced", "dapo", "flowrl", "paced_plus"):
        trainer_of(tmp_path / recipe, recipe, steps=1).train()
        keys.append(set(rows(tmp_path / recipe)[0]))
    assert keys[0] == keys[1] == keys[2] == keys[3]


def test_dynamic_sampling_trains_on_mixed_groups_and_pays_for_all(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "dapo", steps=2)
    trainer.train()
    for row in rows(tmp_path / "run"):
        dropped = sum(value for name, value in row.items() if name.startswith("gate/dropped_"))
        assert row["gate/kept"] + dropped == row["gate/batches"] * PROMPTS
        assert row["gate/kept"] == PROMPTS
        assert row["rollouts/step"] == row["gate/batches"] * PROMPTS * GROUP
    assert rows(tmp_path / "run")[-1]["rollouts/trained"] == 2 * PROMPTS * GROUP


def test_a_capped_refill_trains_on_what_it_has_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hopeless = [{"source": "skills", "options": {"size": 64, "skills": ["add", "copy"]}}]
    trainer = trainer_of(
        tmp_path / "run", "dapo", steps=1, data={"train": hopeless, "eval": []}, gate={"max_batches": 2}
    )
    trainer.train()
    (row,) = rows(tmp_path / "run")
    assert row["gate/batches"] == 2
    assert row["gate/capped"] == 1
    assert 0 < row["gate/kept"] < PROMPTS
    assert row["rollouts/trained"] == row["gate/kept"] * GROUP
    warning = " ".join(capsys.readouterr().err.split())
    assert f"the gate kept only {row['gate/kept']:.0f} groups of 2 batches" in warning


@pytest.mark.parametrize(("recipe", "updates"), [("grpo", 1), ("gspo", 4), ("dapo", 16)])
def test_a_batch_gets_as_many_optimiser_steps_as_the_recipe_asks_for(tmp_path: Path, recipe: str, updates: int) -> None:
    trainer = trainer_of(tmp_path / "run", recipe, steps=2)
    trainer.train()
    state = trainer.learner.state_dict()["state"]
    assert {int(moments["step"]) for moments in state.values()} == {2 * updates}
    row = rows(tmp_path / "run")[-1]
    assert row["mismatch/logprob_max"] < 1e-4  # of the first optimiser step, while the policies are still the same
    assert (abs(row["kl/old"]) > 1e-4) == (updates > 1)


def test_several_epochs_clip(tmp_path: Path) -> None:
    settings = {"learning_rate": 3e-3, "epochs": 4}
    trainer = trainer_of(tmp_path / "run", "grpo", steps=2, optimizer=settings)
    trainer.train()
    assert max(row["objective/clipped"] for row in rows(tmp_path / "run")) > 0.01


def test_an_interrupt_after_the_first_optimiser_step_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path / "run", "gspo", steps=3)
    stepped: list[int] = []
    real = learner_module.Learner._apply

    def apply(self: learner_module.Learner, *arguments: Any) -> Any:
        stepped.append(1)
        trainer.guard.requested = len(stepped) >= 2
        return real(self, *arguments)

    monkeypatch.setattr(learner_module.Learner, "_apply", apply)
    summary = trainer.train()
    assert summary.interrupted
    assert (summary.step, len(stepped)) == (1, 4)
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_initial_policy_to_the_end_and_after_resuming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    seen: list[float] = []
    options: dict[str, Any] = {"model": {"name": "tiny", "lora": {"r": 4, "alpha": 8}}} if lora else {}
    options["objective"] = {"kl_coefficient": 0.01}
    options["optimizer"] = {"learning_rate": 2e-3}

    def record(trainer: Trainer) -> Trainer:
        real = trainer.learner.loss

        def loss(inputs: LossInputs) -> Any:
            assert inputs.reference_logprobs_BT is not None
            gap = (inputs.logprobs_BT.detach() - inputs.reference_logprobs_BT) * inputs.mask_BT
            seen.append(float(gap.abs().max()))
            return real(inputs)

        monkeypatch.setattr(trainer.learner, "loss", loss)
        return trainer

    record(trainer_of(tmp_path / "run", "grpo", steps=2, **options)).train()
    first = list(seen)
    assert first[0] < 1e-4 < first[-1]
    record(trainer_of(tmp_path / "run", "grpo", steps=4, **options)).train()
    resumed = seen[len(first) :]
    assert resumed[0] > 1e-3
    divergences = [row["kl/reference"] for row in rows(tmp_path / "run")]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6)
    assert divergences[2] > 1e-5


def test_the_oracle_knows_the_accuracy_that_sampling_shows(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path / "run",
        "oracle",
        sampling={"prompts_per_step": 64, "group_size": 32, "max_prompt_tokens": 64, "max_new_tokens": 10},
        steps=1,
    )
    trainer.train()
    (row,) = rows(tmp_path / "run")
    assert row["accuracy/spearman"] > 0.95
    assert row["accuracy/mae"] < 0.06  # about what 32 samples leave
    assert abs(row["accuracy/bias"]) < 0.02


@pytest.mark.parametrize(
    ("recipe", "sections", "said"),
    [
        ("oracle", {"sampling": {"top_p": 0.9}}, "top_p is 0.9"),
        ("oracle", {"data": {"train": [{"source": "skills", "verifier": "numeric"}]}}, "task skills has 'numeric'"),
        ("lilo", {"sampling": {"prompts_per_step": 20}}, r"20 × gate.oversample = 80 prompts, but"),
    ],
)
def test_what_a_recipe_cannot_do_is_refused(tmp_path: Path, recipe: str, sections: dict[str, Any], said: str) -> None:
    shape = {"prompts_per_step": PROMPTS, "group_size": GROUP, "max_prompt_tokens": 64, "max_new_tokens": 10}
    if "sampling" in sections:
        sections = sections | {"sampling": shape | sections["sampling"]}
    with pytest.raises(InputError, match=said):
        trainer_of(tmp_path / "run", recipe, **sections)
    assert not (tmp_path / "run").exists()


def test_flowrls_log_z_learns_the_mean_of_what_is_left(tmp_path: Path) -> None:
    """At the initial policy its best log Z is mean(r̂)/β, 0 in every group: z-scores do not contain difficulty."""
    trainer = trainer_of(tmp_path / "run", "flowrl", partition={"learning_rate": 2e-3})
    trainer.train()
    log_z = trainer.scheduler.log_z(list(trainer.prompts))
    assert math.isfinite(float(log_z.abs().max()))
    assert float((log_z * trainer.scheduler.partition.beta).abs().mean()) < 0.15  # type: ignore[union-attr]


def test_the_references_forward_passes_stop_for_ctrl_c(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", "gflowrl", steps=1)
    trainer.train()
    trainer.guard.requested = True
    with pytest.raises(Interrupted):
        trainer._reference_logprobs([Completion([6, 2], [-1.0, -1.0], prompt_ids=[1, 5])])
