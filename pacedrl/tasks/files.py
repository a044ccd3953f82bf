"""Reads the rows of one file, by the ending of its name, as pairs (where, row); ``where`` names the row in messages."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from pacedrl.errors import InputError
from pacedrl.text import first_line

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
Reader = Callable[[Path], Rows]

_ARROW_FILE = b"ARROW1"  # begins a file in Arrow's file format (Feather); its stream format has no such mark
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_HINTS = dict.fromkeys((".xlsx", ".xls"), "; save the sheet as CSV")
_HINTS |= dict.fromkeys((".zip", ".tar", ".7z", ".tgz"), "; unpack it")


def read_file(path: Path) -> Rows:
    """Return all rows of a file that exists. Raises InputError, at once or while iterating, naming file and row."""
    ending = ending_of(path.name)
    if ending is None:
        hint = _HINTS.get(path.suffix, "")
        raise InputError(f"{path}: cannot read this kind of file; expected {', '.join(KINDS)}{hint}")
    return _guarded(path, KINDS[ending](path))


def ending_of(name: str) -> str | None:
    """Return the ending that tells the kind of file, without that of a compression; None for other files."""
    for compressed in _COMPRESSED:
        if name.lower().endswith(compressed):
            inner = ending_of(name[: -len(compressed)])
            return inner if inner in TEXT else None
    return next((ending for ending in KINDS if name.lower().endswith(ending)), None)


def stem_of(name: str) -> str:
    """Return the name of a file without the endings that `ending_of` knows."""
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return next((name.removesuffix(ending) for ending in KINDS if name.endswith(ending)), name)


def _guarded(path: Path, rows: Rows) -> Rows:
    """Turn what reading itself can raise into InputError."""
    try:
        yield from rows
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except (OSError, EOFError, lzma.LZMAError) as error:  # gzip raises EOFError for a truncated file
        hint = "; is it compressed as its name says?" if path.suffix.lower() in _COMPRESSED else ""
        raise InputError(f"{path}: cannot read it: {first_line(error)}{hint}") from None


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd")))
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return cast(BinaryIO, openers.get(path.suffix.lower(), open)(path, "rb"))


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
                    f"{where}: not valid JSON ({error.msg} at column {error.colno}); expected one object per line"
                ) from None


def _json(path: Path) -> Rows:
    try:
        value = json.loads(_text(path))
    except json.JSONDecodeError as error:
        hint = "; is it JSONL? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise InputError(
            f"{path}: not valid JSON ({error.msg} at line {error.lineno} column {error.colno}); "
            f"expected a list of rows{hint}"
        ) from None
    for where, row in numbered(path, _table(value, path)):
        yield where, _object(row, where)


def _table(value: Any, path: Path) -> Iterable[Any]:
    """Return the rows of a JSON value: a list of them, or one of the forms that pandas and web services write."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a list of rows, got {_json_type(value)}")
    if set(value) >= {"columns", "data"} and all(isinstance(cells, list) for cells in value["data"]):  # "split"
        return [dict(zip(value["columns"], cells, strict=False)) for cells in value["data"]]
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    tables = [key for key, items in lists.items() if items and all(isinstance(item, dict) for item in items)]
    if len(tables) == 1:  # {"data": [...]}
        return lists[tables[0]]
    lengths = {len(items) for items in lists.values()}
    if len(lists) == len(value) > 0 and len(lengths - {0}) == 1 and not tables:  # columns as lists
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if value and all(isinstance(item, dict) and item for item in value.values()):
        columns = [list(item) for item in value.values()]
        if all(key.isdecimal() for key in columns[0]) and all(keys == columns[0] for keys in columns):  # "columns"
            return [{column: cells[key] for column, cells in value.items()} for key in columns[0]]
        return list(value.values())  # "index": a name for each row
    found = f"several lists of rows ({', '.join(tables)})" if tables else f"keys {', '.join(list(value)[:8])}"
    raise InputError(f"{path}: expected a list of rows, got an object with {found}; save one list of rows per file")


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected an object such as {{"prompt": ..., "answer": ...}}, got {_json_type(row)}')
    return row


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _csv(path: Path, separator: str = ",") -> Rows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # Python limits fields to 131,072 characters; CSV does not
    reader = csv.reader(io.StringIO(_text(path), newline=""), delimiter=separator, strict=True)
    number = 0
    try:
        header = next(reader, [])
        repeated = {name for name in header if header.count(name) > 1}
        if repeated:
            raise InputError(f"{path}: column '{min(repeated)}' is there twice; rename one")
        for number, cells in enumerate((cells for cells in reader if cells), start=1):
            if len(cells) != len(header):
                separators = "commas" if separator == "," else "tabs"
                raise InputError(
                    f"{path}: row {number} has {len(cells)} values, the header {len(header)}; "
                    f"put values that hold {separators} in double quotes"
                )
            # CSV cannot tell empty from missing; as missing, an answer stops its row from being trained on
            yield f"{path}: row {number}", {name: cell or None for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        kind = "CSV" if separator == "," else "TSV"
        raise InputError(f"{path}: row {number + 1} is not valid {kind} ({error}); check its quotes") from None


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            yield from numbered(path, chain.from_iterable(batch.to_pylist() for batch in batches))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file: {first_line(error)}") from None


def _arrow(path: Path) -> Rows:
    import datasets
    import pyarrow.ipc

    try:
        with path.open("rb") as file:
            is_file_format = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        if is_file_format:  # datasets itself reads and writes streams only
            rows = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all().to_pylist()
        else:
            rows = datasets.Dataset.from_file(str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Arrow file: {first_line(error)}") from None
    return numbered(path, rows)


def numbered(source: object, rows: Iterable[Row]) -> Rows:
    """Add to each row where it is: its number in the ``source``."""
    return ((f"{source}: row {number}", row) for number, row in enumerate(rows, start=1))


_tsv = partial(_csv, separator="\t")
TEXT: dict[str, Reader] = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv}
"""Readers of the kinds of files that may be compressed, by ending."""
KINDS = {**TEXT, ".parquet": _parquet, ".arrow": _arrow}
