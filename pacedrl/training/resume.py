"""Checks whether a run may resume from a checkpoint: model and prompts must be the same, but may have moved."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pacedrl.config import Config, dump_config
from pacedrl.distributed.ranks import Ranks
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import Task
from pacedrl.tasks.verifiers import columns_read
from pacedrl.training.checkpoint import STATE_FORMAT, list_checkpoints, load_checkpoint_state, require_whole
from pacedrl.training.run_folder import RunFolder, describe_changes, refuse_changes
from pacedrl.view import View


def claim(folder: RunFolder, ranks: Ranks, view: View) -> Path | None:
    """Lock the run's folder; return the checkpoint to resume from, if there is one.

    Raises InputError if another process is working in the folder, or if a log or the checkpoint is damaged.
    """
    if not ranks.run_on_main(folder.claim):
        view.warn(
            f"run.dir: the file system of '{folder.path}' has no locks: see to it yourself that no other process "
            "trains in this folder"
        )
    ranks.run_on_main(folder.require_readable_logs)
    newest = ranks.broadcast(list_checkpoints(folder.path)[-1:])
    if not newest:
        return None
    ranks.run_on_main(lambda: require_whole(newest[0]))
    return newest[0]


def refuse_foreign(
    folder: Path, before: Config, now: Config, initial_policy: str, fingerprints: Mapping[str, int]
) -> None:
    """Raise InputError for a checkpoint of another version or model, or if its prompts are gone or changed.

    ``before`` is the configuration that the run was started with, ``now`` the present one. ``initial_policy`` is the
    fingerprint of the model that ``now`` names, ``fingerprints`` those of its prompts (`prompt_fingerprints`).
    """
    state = load_checkpoint_state(folder, "trainer")
    if state.get("format") != STATE_FORMAT:
        raise InputError(
            f"{folder}: another version of pacedrl wrote this checkpoint, and this one cannot read its state; "
            "continue with that version, or start another run with run.dir=PATH"
        )
    if state["initial_policy"] != initial_policy:
        named = before.model.name
        was = f"model.name = '{named}' (now '{now.model.name}')" if named != now.model.name else f"another '{named}'"
        raise InputError(
            f"{folder}: this checkpoint belongs to another model: the run was started with {was}, and the weights "
            "differ; name that model, or start another run with run.dir=PATH"
        )
    _refuse_other_prompts(folder, before, now, state.get("prompts"), fingerprints)


def _refuse_other_prompts(
    folder: Path, before: Config, now: Config, saved: Any, fingerprints: Mapping[str, int]
) -> None:
    changed = list(_differences(dump_config(before)["data"]["train"], dump_config(now)["data"]["train"], "data.train"))
    if saved is None:  # older versions did not save fingerprints of prompts
        refuse_changes(folder, changed)
    keys = load_checkpoint_state(folder, "scheduler")["keys"]
    gone = sum(key not in fingerprints for key in keys)
    hashes = [] if saved is None else saved.tolist()
    altered = sum(fingerprints.get(key, value) != value for key, value in zip(keys, hashes, strict=False))
    if not gone and not altered:
        return
    what = f"{gone} are no longer in data.train" if gone else f"{altered} are now tokenised or judged otherwise"
    why = f"it was started with {describe_changes(changed)}" if changed else "the rows or the tokenizer changed"
    raise InputError(
        f"{folder}: of the {len(keys)} prompts that this run was trained on, {what}: {why}; undo the change, or start "
        "another run with run.dir=PATH"
    )


def prompt_fingerprints(tasks: Iterable[Task]) -> dict[str, int]:
    """Map each key to a 64-bit hash of the prompt's tokens, the columns that its verifiers read, and the verifiers.

    The key covers question and answer. Names of tasks and folders of a user's functions are not part of the hash.
    """
    fingerprints: dict[str, int] = {}
    for task in tasks:
        parts = (task.correctness, *task.parts)
        judges = json.dumps([[_without_folder(p.verifier), p.options, p.name, p.weight] for p in parts], sort_keys=True)
        columns = [columns_read(part.verifier) for part in parts]  # None stands for all columns
        for prompt in task.prompts:
            if prompt.key not in fingerprints:
                read = {
                    name: value
                    for name, value in prompt.columns.items()
                    if any(names is None or name in names for names in columns)
                }
                digest = hashlib.sha256(array("q", prompt.token_ids).tobytes())
                digest.update(f"{judges}\0{json.dumps(read, sort_keys=True)}".encode("utf-8", "surrogatepass"))
                fingerprints[prompt.key] = int.from_bytes(digest.digest()[:8], "little", signed=True)
    return fingerprints


def _without_folder(verifier: str) -> str:
    where, colon, name = verifier.rpartition(":")
    return f"{Path(where).name}:{name}" if colon and where.endswith(".py") else verifier


def _differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Differences between two trees of mappings, lists and values: dotted path, old value, new value."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differences(old, new, f"{path}.{i}")
    elif before != now:
        yield path, before, now
