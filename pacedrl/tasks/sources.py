"""Reads rows from files, folders, hub datasets and generators, as pairs (where, row)."""

import contextlib
import difflib
import glob
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.files import KINDS, Rows, ending_of, numbered, read_file, stem_of
from pacedrl.tasks.verifiers import import_gym
from pacedrl.text import first_line

_URL = re.compile(r"[a-z0-9]+://")
_GLOB = re.compile(r"[*?\[]")


def read_rows(config: TaskConfig) -> Rows:
    """Return all rows of ``config.source`` in order. Raises InputError, at once or while iterating, naming the row.

    A path that exists on this machine wins over a dataset of the hub with that name.
    """
    source = config.source
    if isinstance(source, list):
        return _all_rows(config, source)
    if source == "skills":
        from pacedrl.tasks.skills import skill_rows

        return numbered("skills", skill_rows(config.split, **config.options))
    if source.startswith("gym:"):
        return _gym(source.removeprefix("gym:"), config.options)
    if _URL.match(source):
        raise InputError(f"{source}: URLs are not read; download the file and name it, or name a dataset of the hub")
    if not is_local(source):
        with _offline_unless_reachable():
            return numbered(source, _loaded(config, source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved(config, path) if _is_saved(path) else _folder(config, path)
    if not path.exists() and _GLOB.search(source):
        return _all_rows(config, _matches(path))
    if config.options:
        raise InputError(f"{source}: options are for generators, folders and hub datasets; a file takes none")
    if not path.exists():
        hint = _close(path) if path.parent.is_dir() else f"; there is no folder {path.parent} either"
        raise InputError(f"{path}: no such file{hint}")
    return read_file(path)


def _all_rows(config: TaskConfig, sources: Iterable[object]) -> Rows:
    return chain.from_iterable(read_rows(config.model_copy(update={"source": str(source)})) for source in sources)


def is_local(source: str) -> bool:
    """Tell whether ``source`` means a path, existing or not. If it looks like one, it is never tried on the hub."""
    path_like = source.startswith((".", "/", "~")) or ending_of(source) is not None or _GLOB.search(source) is not None
    return path_like or Path(source).exists()


def default_name(source: str | list[str]) -> str:
    """Return a task's name unless the configuration gives one."""
    first = source[0] if isinstance(source, list) else source
    if first == "skills" or first.startswith("gym:") or not is_local(first):
        return first
    return stem_of(Path(first).expanduser().resolve().name)


def default_verifier(source: str | list[str]) -> str:
    """Return a task's verifier unless the configuration gives one."""
    first = source[0] if isinstance(source, list) else source
    if first.startswith("gym:"):
        return "gym"
    return "exact" if first == "skills" else "math"


def split_names(source: str, subset: str | None) -> list[str]:
    """Return the splits of a folder or hub dataset; none for other sources. Raises InputError for a missing subset."""
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
    """Return the files that the pattern matches, sorted by name; if it matches no file, the folders."""
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    if not found:
        raise InputError(f"{pattern}: no file matches this pattern")
    return [path for path in found if path.is_file()] or found


def _close(path: Path) -> str:
    """Return a hint at a file with a similar name, if there is one."""
    names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _folder(config: TaskConfig, path: Path) -> Rows:
    """Read a folder as ``load_dataset`` does: as a dataset's repository, or as shards named after their split."""
    names: list[str] = []
    with contextlib.suppress(InputError):  # `_loaded` will say what is wrong with the folder
        names = [] if config.options else split_names(str(path), None)
    if names and config.split not in names and config.split.isidentifier():  # not "train[:100]"
        raise InputError(f"{config.source}: has no split '{config.split}'; it has {', '.join(names)}")
    return numbered(config.source, _loaded(config, str(path)))


def _is_saved(path: Path) -> bool:
    """Tell whether ``save_to_disk`` of a Dataset or a DatasetDict wrote this folder."""
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
    return numbered(config.source, saved)


@contextlib.contextmanager
def _offline_unless_reachable() -> Iterator[None]:
    """Set the hub's library offline without a network. Otherwise it tries half a minute before it reads its cache."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE
    try:
        if not before:
            get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # huggingface_hub may use one of several HTTP libraries
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
    """Return why ``load_dataset`` failed: a message about the data in full, of any other the first line."""
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
        # Without a seed, reasoning-gym makes new prompts at every call, and a resumed run would not find its own.
        dataset = gym.create_dataset(name, **{"seed": 0, **options})
    except (TypeError, ValueError, AssertionError) as error:
        options_known = ", ".join(known[name][1].__dataclass_fields__)
        raise InputError(f"gym:{name}: bad options: {first_line(error)}; its options are {options_known}") from None
    return numbered(f"gym:{name}", map(dataset.__getitem__, range(len(dataset))))
