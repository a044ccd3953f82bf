"""Rows out of files, folders, hub datasets and generators, as iterators of (where, row)."""

from __future__ import annotations

import contextlib
import difflib
import glob
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.files import KINDS, Rows, ending_of, first_line, read_file, stem_of
from pacedrl.tasks.verifiers import import_gym

_URL = re.compile(r"[a-z0-9]+://")
_GLOB = re.compile(r"[*?\[]")


def read_rows(config: TaskConfig) -> Rows:
    """All rows of ``config.source`` in order. Raises InputError, at once or while iterating, naming file and row.

    What exists on this machine is read from here, also where the hub may have a dataset of that name.
    """
    source = config.source
    if isinstance(source, list):
        parts = [config.model_copy(update={"source": part}) for part in source]
        return chain.from_iterable(map(read_rows, parts))
    if source == "skills":
        return _skills(config)
    if source.startswith("gym:"):
        return _gym(source.removeprefix("gym:"), config.options)
    if _URL.match(source):
        raise InputError(f"{source}: URLs are not read; download the file and name it, or name a dataset of the hub")
    if not is_local(source):
        return _hub(config)
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved(config, path) if _is_saved(path) else _folder(config, path)
    if not path.exists() and _GLOB.search(source):
        parts = [config.model_copy(update={"source": str(match)}) for match in _matches(path)]
        return chain.from_iterable(map(read_rows, parts))
    if config.options:
        raise InputError(f"{source}: options are for generators, folders and hub datasets; a file takes none")
    if not path.exists():
        raise InputError(f"{path}: no such file{_nearest(path)}")
    return read_file(path)


def is_local(source: str) -> bool:
    """Whether ``source`` means a path, existing or not; what looks like one is never tried on the hub."""
    path_like = source.startswith((".", "/", "~")) or ending_of(source) is not None or _GLOB.search(source) is not None
    return path_like or Path(source).exists()


def default_name(source: str | list[str]) -> str:
    """What a task is called unless it is given a name."""
    first = source[0] if isinstance(source, list) else source
    if first == "skills" or first.startswith("gym:") or not is_local(first):
        return first
    return stem_of(Path(first).expanduser().resolve().name)


def default_verifier(source: str | list[str]) -> str:
    first = source[0] if isinstance(source, list) else source
    if first.startswith("gym:"):
        return "gym"
    return "exact" if first == "skills" else "math"


def split_names(source: str, subset: str | None) -> list[str]:
    """The splits of a folder or hub dataset, in its own order; none of other sources. InputError if it has no such
    subset."""
    import datasets

    path = Path(source).expanduser()
    if is_local(source) and not path.is_dir():
        return []
    if _is_saved(path):
        saved = _load_saved(path)
        return list(saved) if isinstance(saved, datasets.DatasetDict) else []
    try:
        return list(datasets.get_dataset_split_names(str(path) if path.is_dir() else source, subset))
    except Exception as error:  # as in `_loaded`
        raise InputError(f"{source}: cannot tell its splits: {_reason(error)}") from None


def _matches(pattern: Path) -> list[Path]:
    """The files that the pattern matches, sorted by name; the folders, where it matches no file."""
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise InputError(f"{pattern}: no file matches this pattern")
    return [path for path in found if path.is_file()] or found


def _nearest(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    return _close(path)


def _close(path: Path) -> str:
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _folder(config: TaskConfig, path: Path) -> Rows:
    """A folder of files, as ``load_dataset`` reads it: a dataset's repository, or shards named after their split."""
    names: list[str] = []
    with contextlib.suppress(InputError):  # `_loaded` will say what is wrong with the folder
        names = [] if config.options else split_names(str(path), None)
    if names and config.split not in names and config.split.isidentifier():  # not "train[:100]"
        raise InputError(f"{config.source}: has no split '{config.split}'; it has {', '.join(names)}")
    rows = _loaded(config, str(path))
    return ((f"{config.source}: row {number}", row) for number, row in enumerate(rows, start=1))


def _is_saved(path: Path) -> bool:
    """Whether ``save_to_disk`` of a Dataset or a DatasetDict wrote this folder."""
    return (path / "dataset_dict.json").is_file() or all(
        (path / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def _load_saved(path: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # a damaged folder raises whatever its files do
        raise InputError(f"{path}: not a readable saved dataset: {first_line(error)}") from None


def _saved(config: TaskConfig, path: Path) -> Rows:
    import datasets

    if config.options:
        raise InputError(f"{path}: is a saved dataset, which takes no options; leave them out")
    saved = _load_saved(path)
    if isinstance(saved, datasets.DatasetDict):
        if config.split not in saved:
            raise InputError(f"{path}: has no split '{config.split}'; it has {', '.join(saved)}")
        saved = saved[config.split]
    elif "split" in config.model_fields_set and saved.split is not None and str(saved.split) != config.split:
        raise InputError(f"{path}: is the split '{saved.split}' of a dataset, and has no split '{config.split}'")
    return ((f"{config.source}: row {number}", row) for number, row in enumerate(saved, start=1))


def _hub(config: TaskConfig) -> Rows:
    with _offline_unless_reachable():
        rows = _loaded(config, str(config.source))
    return ((f"{config.source}: row {number}", row) for number, row in enumerate(rows, start=1))


@contextlib.contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Without a network, the hub's library would try for half a minute before it looks into its cache."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # of whichever HTTP library huggingface_hub uses
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _loaded(config: TaskConfig, source: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source, split=config.split, **config.options)
    except Exception as error:  # network, name, configuration, split: a dozen unrelated types across three libraries
        reason = _reason(error)
    if is_local(source):
        raise InputError(
            f"{config.source}: this folder (split '{config.split}') cannot be loaded: {reason}; expected files ending "
            f"in {', '.join(KINDS)}, their splits by datasets' rules for names, or a folder that save_to_disk wrote"
        )
    raise InputError(
        f"hub dataset '{config.source}' (split '{config.split}') cannot be loaded: {reason}; check name, split, network"
        f" and options, e.g. options: {{name: main}}; no file or folder has this name{_close(Path(source))}"
    )


def _reason(error: Exception) -> str:
    """Why ``load_dataset`` failed: what it says of the data in full, of anything else the first line."""
    if type(error).__name__.startswith("DatasetGeneration") and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = " ".join(str(error).split())[:300] if isinstance(error, ValueError) else first_line(error)
    return f"{type(error).__name__}: {text.removesuffix('.')}"


def _gym(name: str, options: dict[str, Any]) -> Rows:
    gym = import_gym()
    known = gym.factory.DATASETS
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(sorted(known))}"
        raise InputError(f"gym:{name}: reasoning-gym has no such dataset; {hint}")
    try:
        # Unseeded, reasoning-gym makes new prompts at every call, and a resumed run would not find its own.
        dataset = gym.create_dataset(name, **{"seed": 0, **options})
    except (TypeError, ValueError, AssertionError) as error:
        options_known = ", ".join(known[name][1].__dataclass_fields__)
        raise InputError(f"gym:{name}: bad options: {first_line(error)}; its options are {options_known}") from None
    return ((f"gym:{name}: row {index + 1}", dataset[index]) for index in range(len(dataset)))


def _skills(config: TaskConfig) -> Rows:
    from pacedrl.tasks.skills import skill_rows

    rows = skill_rows(config.split, **config.options)
    return ((f"skills: row {number}", row) for number, row in enumerate(rows, start=1))
