"""Checkpoints are written completely or not at all, and only the newest few are kept.

``checkpoints/step-00100/`` holds the policy (safetensors, which transformers can load) and, under ``state/``, what
training needs to resume: optimiser, scheduler and counters. A policy that was sharded over processes is saved in one
piece. The optimiser's state is then saved in one part per process, ``optimizer-00001-of-00004``, from which any number
of processes can resume.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.policy.loading import damage
from pacedrl.policy.policy import Policy
from pacedrl.training.state import load_state, save_state

State = dict[str, Any]
STATE_FORMAT = 4
"""Version of the training state in a checkpoint; it increases when that state changes."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
"""Saving a tokenizer writes at least one of these."""
NAME = re.compile(r"step-\d{5,}")
SPLIT = re.compile(r"optimizer-\d+-of-(\d+)")
"""Name of the optimiser state of one of several processes."""
STATE_FILES = (".json", ".safetensors")
INDEX = "model.safetensors.index.json"
"""Lists the files of weights that are saved in several files."""


def save_checkpoint(
    run_dir: Path, step: int, policy: Policy, state: State, keep: int, ranks: Ranks | None = None
) -> Path:
    """Write the checkpoint of ``step`` under a temporary name, rename it, then delete all but the newest ``keep``.

    An existing checkpoint is left alone: the same step of the same run has the same content. All processes call this.
    The main one writes; with a sharded policy, each process also writes its part of the optimiser's state.
    """
    ranks = ranks or Ranks()
    root = run_dir / "checkpoints"
    final = root / f"step-{step:05d}"
    partial = root / f"partial-{final.name}"
    if not ranks.run_on_main(lambda: _begin(partial, final)):
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
            # Renamed first: if the deletion is interrupted, half a checkpoint must not look like a whole one.
            shutil.rmtree(old.rename(root / f"partial-{old.name}"))

    ranks.run_on_all(write)
    ranks.run_on_main(finish)
    return final


def _begin(partial: Path, final: Path) -> bool:
    """Make an empty folder to write to; return False if the checkpoint exists."""
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
    """The step in a checkpoint folder's name. Raises ValueError for another name."""
    return int(folder.name.removeprefix("step-"))


def load_checkpoint_state(folder: Path, name: str) -> Any:
    """Load one part of the training state, as it was given to `save_checkpoint`."""
    try:
        return load_state(folder / "state", name)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder / 'state' / name}.json: cannot be read ({type(error).__name__}: {error})") from error


def load_optimizer_states(folder: Path) -> list[Any]:
    """Load the optimiser's state of each process; without sharding there is one."""
    return [load_checkpoint_state(folder, path.stem) for path in sorted((folder / "state").glob("optimizer*.json"))]


def require_whole(folder: Path) -> None:
    """Raise InputError, which names the newest whole checkpoint, if a file of this one is missing or damaged."""
    problem = _damage(folder)
    if problem is None:
        return
    others = [other for other in list_checkpoints(folder.parent.parent) if other != folder and _damage(other) is None]
    remedy = (
        f"to continue from {others[-1].name}, the newest whole one, remove or rename that folder"
        if others
        else ("no other one is whole")
    )
    raise InputError(
        f"{folder}: this checkpoint is damaged: {problem}; {remedy}, or start another run with run.dir=PATH"
    )


def _damage(folder: Path) -> str | None:
    """The first file of a checkpoint that is missing or unreadable, and why; None if it is whole."""
    state = folder / "state"
    optimizer = sorted(path.stem for path in state.glob("optimizer*.json")) or ["optimizer"]
    split = SPLIT.fullmatch(optimizer[0])
    if split is not None:
        optimizer = [f"optimizer-{part:05d}-of-{split[1]}" for part in range(1, int(split[1]) + 1)]
    needed = [state / f"{name}{ending}" for name in ("trainer", "scheduler", *optimizer) for ending in STATE_FILES]
    for path in (*_model_files(folder), *needed):
        problem = damage(path)
        if problem is not None:
            return f"{path.relative_to(folder)} {problem}"
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return f"{TOKENIZER_FILES[0]} is missing"
    for name in ("trainer", "scheduler"):
        try:
            if not isinstance(load_state(state, name), dict):
                return f"state/{name}.json holds no state"
        except (ValueError, KeyError, TypeError) as error:
            return f"state/{name}.json holds no state ({type(error).__name__}: {error})"
    return None


def _model_files(folder: Path) -> list[Path]:
    """The policy's files that must exist, and all other files in the folder, which are checked if they can be."""
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    if any(path.name.startswith("adapter_") for path in there):
        names = ["adapter_config.json", "adapter_model.safetensors"]
    elif folder / INDEX in there and damage(folder / INDEX) is None:
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8")).get("weight_map", {})
        names = ["config.json", *sorted(set(shards.values()))]
    else:
        names = ["config.json", "model.safetensors"]
    return [folder / "tokenizer_config.json", *(folder / name for name in names), *there]


def _flush(folder: Path) -> None:
    # The rename must not reach the disk before the files it names, in case the power fails.
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
