"""A run's folder: the resolved configuration and the line-by-line logs, which a resumed run continues exactly."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
import yaml

from pacedrl.config import Config, config_tree, dump_config, load_config
from pacedrl.config.base import changes
from pacedrl.errors import InputError
from pacedrl.logs import read_lines, read_rows
from pacedrl.paths import replace_text
from pacedrl.training.checkpoint import list_checkpoints
from pacedrl.training.folder_lock import FolderBusy, lock_folder, unlock_folder
from pacedrl.version import __version__

LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl", "groups.jsonl")
MOST_SHOWN = 3
"""Maximum number of settings that a refusal names."""


class RunFolder:
    """``config.yaml`` and the line-by-line ``LOGS`` in the folder of a run.

    Making one changes nothing on disk. Of several processes only one ``writes``; the others only read. Raises
    InputError for a folder that holds a run of other settings.
    """

    def __init__(self, config: Config, writes: bool = True) -> None:
        self.config = config
        self.path = config.run.dir
        self.writes = writes
        self._made = False
        self.before = refuse_another_run(self.path, config)
        """The configuration that the run in the folder was started with; None if there is none."""

    def claim(self) -> bool:
        """Make and lock the folder; return False if its file system has no locks.

        Raises InputError if another process is working in it, or if it is not writable.
        """
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            return lock_folder(self.path)
        except FolderBusy as holder:
            raise InputError(
                f"run.dir: {holder} is working in '{self.path}'; wait until it ends, or choose another folder with "
                "run.dir=PATH"
            ) from None
        except OSError as error:
            raise InputError(
                f"run.dir: cannot write to '{self.path}' ({error.strerror}); choose another with run.dir=PATH"
            ) from None

    def require_readable_logs(self) -> None:
        """Raise InputError for an unreadable line in a log, except a half-written last line."""
        for name in LOGS:
            read_rows(self.path / name)

    def release(self, abandon: bool = False) -> None:
        """Unlock the folder; with ``abandon``, also remove it if `claim` made it and it is empty."""
        if self.writes:
            unlock_folder(self.path, remove=abandon and self._made)

    def open_at(self, step: int) -> None:
        """Write the configuration; drop log lines of later steps and a half-written last line, which will be redone."""
        if not self.writes:
            return
        kept = {
            path: [line for line, row in read_lines(path) if row["step"] <= step]
            for name in LOGS
            if (path := self.path / name).exists()
        }
        versions = {library.__name__: str(library.__version__) for library in (torch, transformers, numpy)}
        versions = {"pacedrl": __version__} | versions | {"python": platform.python_version()}
        resolved = dump_config(self.config) | {"versions": versions}
        replace_text(self.path / "config.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
        for path, lines in kept.items():
            replace_text(path, "".join(line + "\n" for line in lines))

    def log(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row as JSON; numbers that are not finite become null."""
        if not self.writes:
            return
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row), ensure_ascii=True) + "\n")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """All rows of a log; an empty list if it does not exist yet."""
        return read_rows(self.path / name)


def refuse_another_run(folder: Path, config: Config) -> Config | None:
    """The configuration of the run in the folder; None if there is none.

    Raises InputError if a setting that a run must keep differs, or if the run's configuration is lost.
    """
    path = folder / "config.yaml"
    if not path.exists():
        if list_checkpoints(folder):
            raise InputError(
                f"{path}: is missing, so the settings that this run was trained with are unknown; put it back (a "
                "copy of the configuration that the run was started with will do), or start another run with "
                "run.dir=PATH"
            )
        return None
    before = _read_config(path)
    refuse_changes(path, list(changes(before, config)))
    return before


def refuse_changes(where: Path, changed: Sequence[tuple[str, Any, Any]]) -> None:
    """Raise InputError if there are any changes (dotted name, old value, new value)."""
    if changed:
        raise InputError(
            f"{where}: this run was started with {describe_changes(changed)}; undo the change, or start another run "
            "with run.dir=PATH"
        )


def describe_changes(changed: Sequence[tuple[str, Any, Any]]) -> str:
    """Describe changes as ``A = 1 (now 2), B = 3 (now 4) and 2 more``."""
    named = ", ".join(f"{field} = {old!r} (now {new!r})" for field, old, new in changed[:MOST_SHOWN])
    return named + (f" and {len(changed) - MOST_SHOWN} more" if len(changed) > MOST_SHOWN else "")


def _read_config(path: Path) -> Config:
    try:
        if not config_tree(path):
            raise InputError(f"{path}: is empty")
        return load_config(path)
    except InputError as error:
        raise InputError(
            f"{error}; this is not the config.yaml of a run of this version: choose another folder with run.dir=PATH"
        ) from None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
