"""A key-value cache for decoding a changing set of rows: preallocated, written in place, never concatenated."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pacedrl.errors import InputError
from pacedrl.policy.transfer import to_device

States = tuple[Tensor, Tensor]
"""Keys and values of one layer: [rows, key-value heads, columns, D]."""


def states_of(prefilled: Cache, width: int) -> list[States]:
    """Return the keys and values that a model has written into ``prefilled``, one pair per layer.

    Raises InputError for a cache that does not hold one key and one value for each of ``width`` tokens.
    """
    found = []
    for layer in prefilled.layers:
        for states in (layer.keys, layer.values):
            if states is None or states.ndim != 4 or states.shape[2] != width:
                raise InputError(f"model.name: its cache ({type(layer).__name__}) cannot be shared by completions")
        found.append((layer.keys, layer.values))
    return found


def no_columns(states: Sequence[States]) -> list[States]:
    """Return the same layers and rows with no token."""
    return [(keys[:, :, :0], values[:, :, :0]) for keys, values in states]


def column_step(device: torch.device) -> int:
    """Return the number of columns by which the columns that attention reads grow and shrink."""
    # On a GPU shapes then recur, so that torch's allocator reuses its blocks and the libraries the kernels they have
    # chosen; the added columns are masked. The number was not measured. On a CPU they would only be more work.
    return 64 if device.type == "cuda" else 1


def round_up(columns: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``columns``."""
    return -(-columns // step) * step


def cached_dtype(states: Tensor) -> torch.dtype:
    """Return the precision in which attention reads ``states``, which is autocast's where it is enabled."""
    # Rotary embeddings return float32 even under autocast; attention then uses the lower precision.
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


class ColumnCache:
    """Keys and values of up to ``row_capacity`` sequences that are decoded together, one token at a time.

    All rows write to the same column, ``end``, so the tokens of row i are in the columns from ``start_B[i]`` up to
    ``end``. The rows below ``rows`` and the columns from ``first`` on are in use; attention reads ``columns``.
    ``cache`` is passed to the model as its key-value cache.
    """

    def __init__(self, row_capacity: int, column_capacity: int, device: torch.device) -> None:
        self.row_capacity = row_capacity
        self.step = column_step(device)
        self.column_capacity = round_up(column_capacity, self.step)
        self.rows = self.first = self.end = 0
        self.start_B = torch.zeros(row_capacity, dtype=torch.long, device=device)
        self.starts: list[int] = []
        """The numbers in ``start_B`` of the rows in use, for the host, which would have to wait for the device's."""
        self.row_states = [self.start_B]
        """Tensors with one entry per row, which move with the rows."""
        self.cache = Cache(layers=[])

    @property
    def columns(self) -> slice:
        """The columns that attention reads: those in use and the one that is written next, in whole steps."""
        return slice(self.first // self.step * self.step, round_up(self.end + 1, self.step))

    def token_mask(self) -> Tensor:
        """Return which of ``columns`` hold a token of each row once the next one is written: bool [rows, columns]."""
        columns = self.columns
        column_L = torch.arange(columns.start, columns.stop, device=self.start_B.device)
        token_BL = column_L >= self.start_B[: self.rows, None]
        return token_BL if columns.stop == self.end + 1 else token_BL & (column_L <= self.end)

    def insert(self, states: Sequence[States], lengths: Sequence[int], repeats: int) -> None:
        """Add left-padded sequences, each ``repeats`` times. One without tokens begins at the next column."""
        width = max(lengths)
        if not self.cache.layers:
            self.cache.layers = [_Layer(self, *layer) for layer in states]
        if self.end < width or self.rows == 0:
            self._move_to(width)
        rows = slice(self.rows, self.rows + len(lengths) * repeats)
        for own, new in zip(self.cache.layers, states, strict=True):
            for buffer, tensor in zip((own.keys, own.values), new, strict=True):
                # Masked columns are cleared too, because 0 · inf is NaN.
                buffer[rows, :, self.columns.start : self.end - width] = 0.0
                self._clear_ahead(buffer[rows], self.end)
                buffer[rows, :, self.end - width : self.end] = tensor.repeat_interleave(repeats, dim=0)
        self.starts += [self.end - length for length in lengths for _ in range(repeats)]
        self.start_B[rows] = to_device(self.starts[rows], self.start_B.device)
        self.rows = rows.stop
        self.first = min(self.starts)

    def remove(self, gone: Collection[int]) -> tuple[list[int], list[int]]:
        """Drop rows. The last rows move to their places: returns (the places filled, the rows that moved there)."""
        left = self.rows - len(gone)
        places = [row for row in gone if row < left]
        movers = [row for row in range(left, self.rows) if row not in gone]
        if places:
            place_M, mover_M = to_device([places, movers], self.start_B.device)
            for layer in self.cache.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[place_M, :, self.first : self.end] = buffer[mover_M, :, self.first : self.end]
            for state in self.row_states:
                state[place_M] = state[mover_M]
            for place, mover in zip(places, movers, strict=True):
                self.starts[place] = self.starts[mover]
        del self.starts[left:]
        self.rows = left
        self.first = min(self.starts, default=self.end)
        return places, movers

    def make_room(self) -> None:
        """Ensure that there is a column to write: drop columns that no row uses any more, or double the buffers."""
        if self.end < self.column_capacity:
            return
        if self.first < self.column_capacity // 2:
            self.column_capacity *= 2
            self._move_to(self.end)
        else:
            self._move_to(self.end - self.first)

    def _move_to(self, end: int) -> None:
        """Move the columns in use so that they end at ``end``, into larger buffers if the capacity has grown."""
        self.column_capacity = max(self.column_capacity, round_up(end + 1, self.step))
        width = self.end - self.first
        for layer in self.cache.layers:
            layer.keys = self._moved(layer.keys, end, width)
            layer.values = self._moved(layer.values, end, width)
        self.start_B += end - self.end
        self.starts = [start + end - self.end for start in self.starts]
        self.first, self.end = end - width, end

    def _moved(self, buffer: Tensor, end: int, width: int) -> Tensor:
        used = buffer[: self.rows, :, self.first : self.end]
        if buffer.shape[2] < self.column_capacity:
            buffer = buffer.new_zeros(*buffer.shape[:2], self.column_capacity, buffer.shape[3])
        else:
            used = used.clone()
        buffer[: self.rows, :, end - width : end] = used
        self._clear_ahead(buffer[: self.rows], end)
        return buffer

    def _clear_ahead(self, buffer: Tensor, end: int) -> None:
        """Clear the columns from ``end`` on, which may hold old tokens, if ``columns`` may contain some of them."""
        if self.step > 1:
            buffer[:, :, end:] = 0.0


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False

    def __init__(self, owner: ColumnCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner = owner
        shape = (owner.row_capacity, keys.shape[1], owner.column_capacity)
        self.keys = keys.new_zeros(*shape, keys.shape[3], dtype=cached_dtype(keys))
        self.values = values.new_zeros(*shape, values.shape[3], dtype=cached_dtype(values))
        self.is_initialized = True
        # transformers then uses every mask. Otherwise it reads each one, to leave it out where all tokens are seen, for
        # which the host would wait for a GPU; with columns in steps that is rare.
        self.is_compileable = owner.step > 1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        used = self.owner
        self.keys[: used.rows, :, used.end] = key_states[:, :, 0]
        self.values[: used.rows, :, used.end] = value_states[:, :, 0]
        return self.keys[: used.rows, :, used.columns], self.values[: used.rows, :, used.columns]

    def get_seq_length(self) -> int:
        return self.owner.end - int(self.owner.columns.start)

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        columns = self.owner.columns
        return int(columns.stop - columns.start), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length
