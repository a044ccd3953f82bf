"""A key-value cache for decoding a changing set of rows: preallocated, written in place, never concatenated."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from pacedrl.errors import InputError

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


class ColumnCache:
    """Keys and values of up to ``row_capacity`` sequences that are decoded together, one token at a time.

    All rows write to the same column, ``end``, so the tokens of row i are in the columns from ``start_B[i]`` up to
    ``end``. The rows below ``rows`` and the columns from ``first`` on are in use. ``cache`` is passed to the model as
    its key-value cache.
    """

    def __init__(self, row_capacity: int, column_capacity: int, device: torch.device) -> None:
        self.row_capacity = row_capacity
        self.column_capacity = column_capacity
        self.rows = self.first = self.end = 0
        self.start_B = torch.zeros(row_capacity, dtype=torch.long, device=device)
        self.cache = Cache(layers=[])

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
                buffer[rows, :, self.first : self.end - width] = 0.0  # also masked columns, because 0 · inf is NaN
                buffer[rows, :, self.end - width : self.end] = tensor.repeat_interleave(repeats, dim=0)
        length_P = torch.tensor(lengths, device=self.start_B.device)
        self.start_B[rows] = self.end - length_P.repeat_interleave(repeats)
        self.rows = rows.stop
        self.first = int(self.start_B[: self.rows].min())

    def remove(self, gone: Collection[int]) -> tuple[list[int], list[int]]:
        """Drop rows. The last rows move to their places: returns (the places filled, the rows that moved there)."""
        left = self.rows - len(gone)
        places = [row for row in gone if row < left]
        movers = [row for row in range(left, self.rows) if row not in gone]
        if places:
            for layer in self.cache.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[places, :, self.first : self.end] = buffer[movers, :, self.first : self.end]
            self.start_B[places] = self.start_B[movers]
        self.rows = left
        self.first = int(self.start_B[:left].min()) if left else self.end
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
        self.column_capacity = max(self.column_capacity, end + 1)
        width = self.end - self.first
        for layer in self.cache.layers:
            layer.keys = self._moved(layer.keys, end, width)
            layer.values = self._moved(layer.values, end, width)
        self.start_B += end - self.end
        self.first, self.end = end - width, end

    def _moved(self, buffer: Tensor, end: int, width: int) -> Tensor:
        used = buffer[: self.rows, :, self.first : self.end]
        if buffer.shape[2] < self.column_capacity:
            buffer = buffer.new_zeros(*buffer.shape[:2], self.column_capacity, buffer.shape[3])
        else:
            used = used.clone()
        buffer[: self.rows, :, end - width : end] = used
        return buffer


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False

    def __init__(self, owner: ColumnCache, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.owner = owner
        shape = (owner.row_capacity, keys.shape[1], owner.column_capacity)
        # Rotary embeddings return float32 even under autocast; attention then uses the lower precision.
        kind = keys.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else keys.dtype
        self.keys = keys.new_zeros(*shape, keys.shape[3], dtype=dtype)
        self.values = values.new_zeros(*shape, values.shape[3], dtype=dtype)
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        used = self.owner
        self.keys[: used.rows, :, used.end] = key_states[:, :, 0]
        self.values[: used.rows, :, used.end] = value_states[:, :, 0]
        columns = slice(used.first, used.end + 1)
        return self.keys[: used.rows, :, columns], self.values[: used.rows, :, columns]

    def get_seq_length(self) -> int:
        return self.owner.end - self.owner.first

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        return self.get_seq_length() + 1, 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length
