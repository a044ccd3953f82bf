"""TensorBoard, Weights & Biases or trackio beside metrics.jsonl, through accelerate's trackers."""

import importlib.util
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pacedrl.config import Config, dump_config
from pacedrl.errors import InputError
from pacedrl.paths import replace_text
from pacedrl.training.wandb_login import wandb_is_ready

Log = Callable[[Mapping[str, float], int], None]
"""Logs the finite metrics of one step: (metrics, step)."""
RUN_ID = "trackers.json"
"""File in the run's folder with the id that trackers know the run by, so that a resumed run continues its record."""


def require_trackers(config: Config) -> None:
    """Raise InputError if a tracker is not installed, or if Weights & Biases has no login."""
    for name in config.tracking.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name, such as W&B's, is not a package
            raise InputError(f"tracking.trackers: '{name}' is not installed: pip install \"pacedrl[trackers]\"")
    if "wandb" in config.tracking.trackers and not wandb_is_ready():
        raise InputError(
            "tracking.trackers: wandb is not logged in: run `wandb login` or set WANDB_API_KEY, or set "
            "WANDB_MODE=offline to log to disk alone"
        )


@contextmanager
def tracking(config: Config, step: int) -> Iterator[Log]:
    """Start the configured trackers, if any, and yield the function that logs to them; at the end, close them.

    If ``step`` is above 0, the run's own record is continued. With several processes, only the main one logs. Raises
    InputError if a tracker does not start.
    """
    names = config.tracking.trackers
    if not names:
        yield lambda metrics, step: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=str(config.run.dir), cpu=config.run.device == "cpu")
    how = _continue_record(config.run.dir, step) if accelerator.is_main_process else {}
    try:
        accelerator.init_trackers(config.tracking.project, config=_flat(dump_config(config)), init_kwargs=how)
    except Exception as error:  # each tracker fails in its own way, most often because of the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"tracking.trackers: {', '.join(names)} did not start ({reason}); fix that, or leave it out"
        ) from error

    def log(metrics: Mapping[str, float], step: int) -> None:
        accelerator.log({name: value for name, value in metrics.items() if math.isfinite(value)}, step=step)

    try:
        yield log
    finally:
        accelerator.end_training()


def _continue_record(folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """Arguments for each tracker that make it continue this run's record."""
    run = _run_id(folder / RUN_ID, step)
    return {
        "wandb": {"id": run, "resume": "allow"},
        "trackio": {"name": f"{folder.name}-{run}", "resume": "allow"},
        # Steps that an earlier process logged after the checkpoint will be logged again.
        "tensorboard": {"purge_step": step + 1 if step else 0},
    }


def _run_id(path: Path, step: int) -> str:
    """The id stored in the folder, or a new id if the run begins at step 0."""
    if step and path.exists():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["run"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: is damaged; remove it to go on in a new record of the trackers") from None
    run = secrets.token_hex(4)
    replace_text(path, json.dumps({"run": run}) + "\n")
    return run


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
