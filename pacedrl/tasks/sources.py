"""Rows out of files, hub datasets and generators: iterators of (where, row), ``where`` naming the row in messages."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.verifiers import import_gym

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet")


def read_rows(config: TaskConfig) -> Rows:
    """All rows of ``config.source`` in order. Raises InputError, at once or while iterating, naming file and row."""
    source = config.source
    if source == "skills":
        return _skills(config)
    if source.startswith("gym:"):
        return _gym(source.removeprefix("gym:"), config.options)
    if is_file(source):
        if config.options:
            raise InputError(f"{source}: options are for generators and hub datasets; a file takes none")
        return _file(Path(source).expanduser())
    return _hub(config)


def is_file(source: str) -> bool:
    """Whether ``source`` means a path, existing or not; what looks like one is never tried on the hub."""
    return source.endswith(ENDINGS) or source.startswith((".", "/", "~")) or Path(source).is_file()


def _file(path: Path) -> Rows:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.name.endswith(ENDINGS))
        found = f"it holds {', '.join(inside[:8])}" if inside else f"it holds no {', '.join(ENDINGS)}"
        raise InputError(f"{path}: is a folder ({found}); give one file")
    if not path.exists():
        raise InputError(f"{path}: no such file{_nearest_file(path)}")
    if path.name.endswith(".parquet"):
        return _parquet(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv}
    if kind not in readers:
        raise InputError(f"{path}: cannot read this kind of file; expected {', '.join(ENDINGS)}")
    return _guarded(path, readers[kind](path))


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _guarded(path: Path, rows: Rows) -> Rows:
    """What reading itself can raise, as InputError."""
    try:
        yield from rows
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except (OSError, EOFError) as error:  # gzip raises EOFError for a truncated file
        raise InputError(f"{path}: cannot read it: {error}") from None


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _text(path: Path) -> str:
    with _open(path) as file:
        return file.read().decode("utf-8-sig")


def _jsonl(path: Path) -> Rows:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield where, _object(json.loads(text.rstrip()), where)
            except UnicodeDecodeError:
                raise InputError(f"{where}: is not UTF-8 text; save the file as UTF-8") from None
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object a line"
                ) from None


def _json(path: Path) -> Rows:
    try:
        rows = json.loads(_text(path))
    except json.JSONDecodeError as error:
        hint = "; is it JSONL? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno} column {error.colno}); "
            f"expected a list of rows{hint}"
        ) from None
    if not isinstance(rows, list):
        keys = f" with keys {', '.join(list(rows)[:8])}" if isinstance(rows, dict) else ""
        raise InputError(f"{path}: expected a list of rows, got {_json_type(rows)}{keys}")
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        yield where, _object(row, where)


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected an object such as {{"prompt": ..., "answer": ...}}, got {_json_type(row)}')
    return row


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path) -> Rows:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    number = 0
    try:
        header = next(reader, [])
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise InputError(f"{path}: column '{min(repeated)}' is there twice; rename one")
        for number, cells in enumerate((cells for cells in reader if cells), start=1):
            if len(cells) != len(header):
                raise InputError(
                    f"{path}: row {number} has {len(cells)} values, the header {len(header)}; "
                    "put values that hold commas in double quotes"
                )
            # CSV cannot tell empty from missing; missing is what stops a row without an answer from being trained on
            yield f"{path}: row {number}", {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise InputError(f"{path}: row {number + 1} is not valid CSV ({error}); check its quotes") from None


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {_first_line(error)}") from None


def _hub(config: TaskConfig) -> Rows:
    import datasets

    try:
        rows = datasets.load_dataset(config.source, split=config.split, **config.options)
    except Exception as error:  # network, name, configuration, split: a dozen unrelated types across three libraries
        raise InputError(
            f"hub dataset '{config.source}' (split '{config.split}') cannot be loaded: {type(error).__name__}: "
            f"{_first_line(error)}; check name, split, network and options, e.g. options: {{name: main}}; "
            f"for a file give a path ending in {', '.join(ENDINGS)}"
        ) from None
    return ((f"{config.source}: row {number}", row) for number, row in enumerate(rows, start=1))


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
        raise InputError(f"gym:{name}: bad options: {_first_line(error)}; its options are {options_known}") from None
    return ((f"gym:{name}: row {index + 1}", dataset[index]) for index in range(len(dataset)))


def _skills(config: TaskConfig) -> Rows:
    from pacedrl.tasks.skills import skill_rows

    rows = skill_rows(config.split, **config.options)
    return ((f"skills: row {number}", row) for number, row in enumerate(rows, start=1))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
