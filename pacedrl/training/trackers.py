"""TensorBoard, Weights & Biases or trackio beside metrics.jsonl, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from pacedrl.config import Config, dump_config
from pacedrl.errors import InputError


class Trackers:
    """Context manager around accelerate's trackers; without any configured it does nothing.

    Raises InputError for a tracker that is not installed.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.accelerator: Any = None
        for name in config.tracking.trackers:
            if importlib.util.find_spec(name) is None:
                raise InputError(f"tracking.trackers: '{name}' is not installed: pip install \"pacedrl[trackers]\"")

    def __enter__(self) -> Trackers:
        names = self.config.tracking.trackers
        if names:
            from accelerate import Accelerator

            self.accelerator = Accelerator(
                log_with=list(names), project_dir=str(self.config.run.dir), cpu=self.config.run.device == "cpu"
            )
            self.accelerator.init_trackers(self.config.tracking.project, config=_flat(dump_config(self.config)))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.accelerator is not None:
            self.accelerator.end_training()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send one step's finite numbers."""
        if self.accelerator is not None:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self.accelerator.log(finite, step=step)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
