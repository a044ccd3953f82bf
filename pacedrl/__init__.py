"""pacedrl: reinforcement learning with verifiable rewards, paced by a learned partition function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pacedrl.version import __version__

__all__ = ["Config", "InputError", "Summary", "Trainer", "__version__", "load_config"]

if TYPE_CHECKING:
    from pacedrl.config import Config, load_config
    from pacedrl.errors import InputError
    from pacedrl.training.trainer import Summary, Trainer

_HOME = {
    "Config": "pacedrl.config",
    "InputError": "pacedrl.errors",
    "Summary": "pacedrl.training.trainer",
    "Trainer": "pacedrl.training.trainer",
    "load_config": "pacedrl.config",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `pacedrl --help` and every verifier process would otherwise wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'pacedrl' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
