"""Checkpoints of the tiny model: whole or not at all, the newest few kept, loadable by transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pacedrl.config import ModelConfig
from pacedrl.policy.policy import Policy
from pacedrl.training import checkpoint
from pacedrl.training.checkpoint import checkpoint_step, list_checkpoints, load_checkpoint_state, save_checkpoint


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]


def on_disk(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def assert_whole(folder: Path, step: int) -> None:
    """Assert that a run can resume from the checkpoint."""
    Policy.load(ModelConfig(), torch.device("cpu"), folder)
    assert load_checkpoint_state(folder, "trainer") == {"step": step}


def test_a_step_folder_is_a_model_for_transformers_with_the_state_beside_it(policy: Policy, tmp_path: Path) -> None:
    with torch.no_grad():
        policy.model.model.norm.weight += 0.5
    state = {"trainer": {"step": 7, "said": ["x"]}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}
    folder = save_checkpoint(tmp_path, 7, policy, state, keep=2)
    assert folder == tmp_path / "checkpoints" / "step-00007"
    model = AutoModelForCausalLM.from_pretrained(folder)
    saved = dict(model.named_parameters())
    assert all(torch.equal(parameter, saved[name]) for name, parameter in policy.model.named_parameters())
    assert AutoTokenizer.from_pretrained(folder)("copy:1=").input_ids == policy.encode("copy:1=")
    assert load_checkpoint_state(folder, "trainer") == state["trainer"]
    assert load_checkpoint_state(folder, "optimizer") == state["optimizer"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}


def test_the_newest_few_are_kept_in_order_of_steps_beyond_five_digits(policy: Policy, tmp_path: Path) -> None:
    for step in (9, 99_998, 99_999, 100_000, 1_000_000):
        save_checkpoint(tmp_path, step, policy, {}, keep=3)
    assert names(tmp_path) == ["step-99999", "step-100000", "step-1000000"]
    assert on_disk(tmp_path) == sorted(names(tmp_path))
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == [99_999, 100_000, 1_000_000]


def test_keep_one_keeps_the_newest(policy: Policy, tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, policy, {}, keep=1)
    assert on_disk(tmp_path) == ["step-00002"]


def test_no_run_has_no_checkpoints_and_other_names_do_not_count(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    for name in ("step-00010", "partial-step-00020", "step-00030.old", "step-abc", "step-12", "backup"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert names(tmp_path) == ["step-00010"]
    with pytest.raises(ValueError, match="invalid literal"):
        checkpoint_step(tmp_path / "partial-step-00020")


@pytest.mark.parametrize("stage", ["policy", "state", "flush"])
def test_a_save_that_dies_is_never_listed_and_swept_up_by_the_next(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    save_checkpoint(tmp_path, 1, policy, {"trainer": {"step": 1}}, keep=1)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    owner, name = {
        "policy": (Policy, "save"),
        "state": (checkpoint, "save_state"),
        "flush": (checkpoint, "_flush"),
    }[stage]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, policy, {"trainer": {"step": 2}}, keep=1)
    assert names(tmp_path) == ["step-00001"]
    assert on_disk(tmp_path) == ["partial-step-00002", "step-00001"]
    assert_whole(tmp_path / "checkpoints" / "step-00001", 1)
    save_checkpoint(tmp_path, 3, policy, {"trainer": {"step": 3}}, keep=1)
    assert on_disk(tmp_path) == ["step-00003"]
    assert_whole(tmp_path / "checkpoints" / "step-00003", 3)


def test_the_same_step_again_leaves_what_is_there(policy: Policy, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 5, policy, {"trainer": {"step": 5}}, keep=2)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert save_checkpoint(tmp_path, 5, policy, {"trainer": {"step": 5}}, keep=2) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert on_disk(tmp_path) == ["step-00005"]
    assert_whole(folder, 5)


def test_a_deletion_that_dies_leaves_only_whole_checkpoints_listed(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 4, policy, {"trainer": {"step": 4}}, keep=1)

    def die(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 5, policy, {"trainer": {"step": 5}}, keep=1)
    assert names(tmp_path) == ["step-00005"]
    assert_whole(tmp_path / "checkpoints" / "step-00005", 5)
    save_checkpoint(tmp_path, 6, policy, {"trainer": {"step": 6}}, keep=1)
    assert on_disk(tmp_path) == ["step-00006"]
