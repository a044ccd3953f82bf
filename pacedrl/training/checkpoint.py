"""Checkpoints: written whole or not at all, the newest few kept.

``checkpoints/step-00100/`` holds the policy (safetensors, loadable by transformers as it is) and, under ``state/``,
what training needs to go on: optimiser, scheduler and counters.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from pacedrl.errors import InputError
from pacedrl.policy.policy import Policy
from pacedrl.training.state import load_state, save_state

State = dict[str, Any]
STATE_FORMAT = 2
"""Of what a checkpoint holds besides the policy; counts up when that changes."""
NAME = re.compile(r"step-(\d{5,})")


def save_checkpoint(run_dir: Path, step: int, policy: Policy, state: State, keep: int) -> Path:
    """Write the checkpoint of ``step`` under a temporary name, rename it, then delete all but the newest ``keep``.

    One that is there already is left as it is: the same run's same step has the same content.
    """
    root = run_dir / "checkpoints"
    final = root / f"step-{step:05d}"
    partial = root / f"partial-{final.name}"
    for leftover in root.glob("partial-*"):
        shutil.rmtree(leftover)
    if final.exists():
        return final
    (partial / "state").mkdir(parents=True)
    policy.save(partial)
    for name, part in state.items():
        save_state(partial / "state", name, part)
    _flush(partial)
    partial.rename(final)
    for old in list_checkpoints(run_dir)[:-keep]:
        # Renamed first: half a checkpoint must not look like a whole one, whenever the deletion dies.
        shutil.rmtree(old.rename(root / f"partial-{old.name}"))
    return final


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in (run_dir / "checkpoints").glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not named like a checkpoint (step-00100)")
    return int(match[1])


def load_checkpoint_state(folder: Path, name: str) -> Any:
    """One part of the training state, as it was given to `save_checkpoint`."""
    return load_state(folder / "state", name)


def refuse_foreign(folder: Path, model: str, fingerprint: str, keys: Container[str]) -> None:
    """Raise InputError for a checkpoint of another version or model, or of prompts that are gone.

    ``fingerprint`` is the initial policy's, ``keys`` those of the prompts there are.
    """
    state = load_checkpoint_state(folder, "trainer")
    if state.get("format") != STATE_FORMAT:
        raise InputError(
            f"{folder}: another version of pacedrl wrote this checkpoint, and this one cannot read its state; go "
            "on with that version, or start another run with run.dir=PATH"
        )
    if state["initial_policy"] != fingerprint:
        raise InputError(
            f"{folder}: this checkpoint belongs to another model than model.name = '{model}'; start another run with "
            "run.dir=PATH"
        )
    gone = [key for key in load_checkpoint_state(folder, "scheduler")["keys"] if key not in keys]
    if gone:
        raise InputError(
            f"{folder}: {len(gone)} prompts that this run was trained on are no longer in data.train; put them "
            "back, or start another run with run.dir=PATH"
        )


def _flush(folder: Path) -> None:
    # A rename must not reach the disk before the files it names: power may fail, not only the process.
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
