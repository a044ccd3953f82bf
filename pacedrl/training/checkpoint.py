"""Checkpoints: written whole or not at all, the newest few kept.

``checkpoints/step-00100/`` holds the policy (safetensors, loadable by transformers as it is) and, under ``state/``,
what training needs to go on: optimiser, scheduler and counters. The policy is in one piece also where processes had
split it; the optimiser's state is then in as many, ``optimizer-00001-of-00004``, whichever number goes on from them.
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
from pacedrl.scale.ranks import Ranks
from pacedrl.training.state import load_state, save_state

State = dict[str, Any]
STATE_FORMAT = 2
"""Of what a checkpoint holds besides the policy; counts up when that changes."""
NAME = re.compile(r"step-(\d{5,})")


def save_checkpoint(
    run_dir: Path, step: int, policy: Policy, state: State, keep: int, ranks: Ranks | None = None
) -> Path:
    """Write the checkpoint of ``step`` under a temporary name, rename it, then delete all but the newest ``keep``.

    One that is there already is left as it is: the same run's same step has the same content. Of several processes
    all call this, and the main one writes; of a policy that is split, each its part of the optimiser's state.
    """
    ranks = ranks or Ranks()
    root = run_dir / "checkpoints"
    final = root / f"step-{step:05d}"
    partial = root / f"partial-{final.name}"
    if not ranks.decide(lambda: _begin(partial, final)):
        return final
    weights = policy.trained_weights(keep=ranks.main)

    def write() -> None:
        if ranks.main:
            policy.save(partial, weights)
        for name, part in state.items():
            if policy.sharded and name == "optimizer":
                save_state(partial / "state", f"{name}-{ranks.index + 1:05d}-of-{ranks.count:05d}", part)
            elif ranks.main:
                save_state(partial / "state", name, part)

    def finish() -> None:
        _flush(partial)
        partial.rename(final)
        for old in list_checkpoints(run_dir)[:-keep]:
            # Renamed first: half a checkpoint must not look like a whole one, whenever the deletion dies.
            shutil.rmtree(old.rename(root / f"partial-{old.name}"))

    ranks.together(write)
    ranks.decide(finish)
    return final


def _begin(partial: Path, final: Path) -> bool:
    """Whether there is something to write; if so, into an empty folder."""
    for leftover in partial.parent.glob("partial-*"):
        shutil.rmtree(leftover)
    if final.exists():
        return False
    (partial / "state").mkdir(parents=True)
    return True


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


def load_optimizer_states(folder: Path) -> list[Any]:
    """The optimiser's state as each process had it; that of a policy that was not split is one."""
    return [load_state(folder / "state", path.stem) for path in sorted((folder / "state").glob("optimizer*.json"))]


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
