"""Nested training state on disk: tensors in safetensors, everything else in JSON. Nothing is ever pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write ``name.json`` and ``name.safetensors``: dicts (string or int keys), lists, tensors and plain values."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")


def load_state(folder: Path, name: str) -> Any:
    """Read what `save_state` wrote. Tuples come back as lists; all other values are unchanged."""
    tensors = load_file(folder / f"{name}.safetensors")
    return _unpack(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = _alone(value.detach().cpu().contiguous(), tensors)
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise TypeError("cannot save a dict whose keys are not all strings or integers")
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot save a {type(value).__name__}: only tensors, dicts, lists and plain values are kept")


def _alone(tensor: torch.Tensor, others: dict[str, torch.Tensor]) -> torch.Tensor:
    """Copy a tensor that shares memory with another one, because safetensors refuses those; return others unchanged."""
    start, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
    shares = size > tensor.nbytes or any(other.untyped_storage().data_ptr() == start for other in others.values())
    return tensor.clone() if shares else tensor


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _unpack(item, tensors) for key, item in value["dict"]}
