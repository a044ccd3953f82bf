"""The plan of a comparison: variants of one configuration, each with the same seeds and the same budget of rollouts."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import yaml

from pacedrl.config import Config, apply_override, config_tree, parse_config
from pacedrl.config.method import DynamicGateConfig
from pacedrl.errors import InputError, did_you_mean
from pacedrl.lab.measures import FINAL
from pacedrl.paths import replace_text
from pacedrl.recipes import RECIPES
from pacedrl.rollouts.tasks import load_tasks, require_enough_prompts, unique_prompts
from pacedrl.tasks.sources import default_name
from pacedrl.training.folder_lock import FolderBusy, lock_folder, unlock_folder
from pacedrl.training.run_folder import refuse_another_run

CONFIG = "comparison.yaml"
"""File in a comparison's folder: the configuration that all runs have in common."""
SETTINGS = "comparison.json"
EVALUATIONS = 12
"""Number of evaluations during a run whose configuration does not say how often to evaluate."""
_NAME = re.compile(r"\w[\w .+=-]*")

Overrides = tuple[str, ...]
"""``section.key=value``, as on the command line."""
Failures = Mapping[str, Mapping[int, str]]
"""Variant → seed → the reason why the run failed, which is the last line of its log."""


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: Path
    overrides: Overrides

    @property
    def finished(self) -> bool:
        return (self.folder / FINAL).exists()

    @property
    def log(self) -> Path:
        """The run's standard output and error. If the run failed, the last line is the reason."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True)
class Plan:
    """A comparison."""

    tree: Mapping[str, Any]
    """The configuration that all variants start from."""
    variants: Mapping[str, Overrides]
    seeds: Sequence[int]
    rollouts: int
    """Completions that each run may generate."""
    final_k: Sequence[int]
    """The ks of the last evaluation's pass@k; the largest is its number of samples."""
    counted: Sequence[str]
    """The evaluation tasks whose mean accuracy is compared; all if empty."""
    folder: Path

    def runs(self) -> list[Run]:
        """All runs, seed by seed: a comparison that is cut short has all variants for the first seeds."""
        return [self._run(name, seed) for seed in self.seeds for name in self.variants]

    def check(self) -> None:
        """Raise InputError for a plan that would fail later, and for a folder that holds something else."""
        configs = {name: self._config(name, self.seeds[0]) for name in self.variants}
        for name, config in configs.items():
            self._check_variant(name, config, next(iter(configs.values())))
        self._check_data(configs)
        self._check_folder()

    def write(self) -> None:
        """Make the folder and write what its runs have in common. Raises InputError if it cannot be written."""
        whole = self.with_earlier()
        compared = {"variants": {name: list(own) for name, own in whole.variants.items()}, "seeds": list(whole.seeds)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self.folder / SETTINGS, json.dumps(self._settings() | compared, indent=2) + "\n")
            replace_text(self.folder / CONFIG, yaml.safe_dump(dict(self.tree), sort_keys=False, allow_unicode=True))
        except OSError as error:
            raise InputError(
                f"--out: cannot write to '{self.folder}' ({error.strerror}); choose another folder"
            ) from None

    def with_earlier(self) -> Plan:
        """Return this plan plus the variants and seeds that earlier comparisons finished in its folder."""
        recorded = self._recorded()
        earlier = {name: tuple(own) for name, own in recorded.get("variants", {}).items()}
        whole = replace(self, variants=earlier | dict(self.variants), seeds=[*recorded.get("seeds", []), *self.seeds])
        finished = [run for run in whole.runs() if run.finished]
        names = {*self.variants, *(run.variant for run in finished)}
        return replace(
            whole,
            variants={name: own for name, own in whole.variants.items() if name in names},
            seeds=sorted({*self.seeds, *(run.seed for run in finished)}),
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other comparisons out of the folder. Raises InputError where another one runs in it."""
        try:
            lock_folder(self.folder)
        except FolderBusy:
            raise InputError(
                f"--out: another comparison runs in '{self.folder}'; wait for it, or choose another folder"
            ) from None
        try:
            yield
        finally:
            unlock_folder(self.folder)

    def _check_variant(self, name: str, config: Config, first: Config) -> None:
        if not config.data.eval:
            raise InputError("data.eval: a comparison needs held-out prompts; add some")
        if (config.data.eval, config.eval) != (first.data.eval, first.eval):
            raise InputError(
                f"variant {name}: data.eval or eval differs from the other variants', so their results cannot be "
                "compared"
            )
        if 1 not in config.eval.k:
            raise InputError(f"eval.k: a comparison needs pass@1; add 1 to {config.eval.k}")
        if config.eval.temperature == 0.0 and max(self.final_k) > 1:
            raise InputError("eval.temperature: at 0 all samples are the same; raise it, or set --final-k 1")
        names = [task.name or default_name(task.source) for task in config.data.eval]
        for task in self.counted:
            if task not in names:
                raise InputError(f"--count: there is no evaluation task '{task}'; there are {', '.join(names)}")
        if isinstance(config.gate, DynamicGateConfig) and config.optimizer.schedule != "constant":
            raise InputError(
                f"variant {name}: optimizer.schedule: with gate.name=dynamic the number of steps within the budget is "
                "not known in advance; set it to constant"
            )

    def _check_data(self, configs: Mapping[str, Config]) -> None:
        """Load the data of all variants once, before each run loads its own."""
        loaded: dict[str, int] = {}
        for name, config in configs.items():
            data = config.data.model_dump_json()
            if data not in loaded:
                loaded[data] = len(unique_prompts(load_tasks(config)[0]))
            try:
                require_enough_prompts(config, loaded[data])
            except InputError as error:
                raise InputError(f"variant {name}: {error}") from None

    def _check_folder(self) -> None:
        path, settings = self.folder / SETTINGS, self._settings()
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(f"--out: '{self.folder}' exists and holds no comparison; choose another folder")
            return
        if not settings.items() <= self._recorded().items():
            raise InputError(
                f"{path}: this folder holds a comparison of another configuration, budget or final k; give another "
                "folder with --out"
            )
        for run in self.runs():
            try:
                refuse_another_run(run.folder, self._config(run.variant, run.seed))
            except InputError as error:
                why = str(error).partition(";")[0]
                raise InputError(f"variant {run.variant}: {why}; delete that run, or give another --out") from None

    def _recorded(self) -> dict[str, Any]:
        """Read the settings, variants and seeds that `write` last wrote into this folder."""
        path = self.folder / SETTINGS
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return recorded

    def _settings(self) -> dict[str, Any]:
        """Return the settings that all comparisons in one folder share, in the form that JSON returns."""
        return {"config": json.loads(json.dumps(self.tree)), "rollouts": self.rollouts, "final_k": list(self.final_k)}

    def _run(self, variant: str, seed: int) -> Run:
        folder, config = self.folder / "runs" / variant / f"seed{seed}", self._config(variant, seed)
        sampling = config.sampling
        rollouts_per_step = sampling.prompts_per_step * config.gate.selection_factor * sampling.group_size
        evaluates = config.eval.every or config.eval.every_rollouts
        overrides = (
            *(() if evaluates else (f"eval.every_rollouts={max(self.rollouts // EVALUATIONS, 1)}",)),
            *self._own(variant, seed),
            f"run.steps={math.ceil(self.rollouts / rollouts_per_step)}",
            f"run.max_rollouts={self.rollouts}",
            f"run.dir={json.dumps(str(folder))}",
        )
        return Run(variant, seed, folder, overrides)

    def _config(self, variant: str, seed: int) -> Config:
        tree = copy.deepcopy(dict(self.tree))
        for override in self._own(variant, seed):
            apply_override(tree, override)
        return parse_config(tree, f"variant {variant}")

    def _own(self, variant: str, seed: int) -> Overrides:
        own = (override.replace("{seed}", str(seed)) for override in self.variants[variant])
        return (f"run.seed={seed}", *own)


class RunQueue:
    """The runs of a plan by state."""

    def __init__(self, plan: Plan) -> None:
        runs = plan.runs()
        self.waiting = [run for run in runs if not run.finished]
        self.running: dict[ForkServerProcess, tuple[Run, int]] = {}
        """Process → its run and its slot, a number below ``jobs``."""
        self.finished = [run for run in runs if run.finished]
        self.failed: dict[str, dict[int, str]] = {name: {} for name in plan.variants}
        """Failed runs, in the form of `Failures`."""


def read_variants(names: Sequence[str], file: Path | None) -> dict[str, Overrides]:
    """Return overrides by name: those of the named recipes and variants, or of all variants in the file.

    The file is YAML: each name has a list of ``section.key=value``, in which ``{seed}`` stands for a run's seed. Raises
    InputError.
    """
    own = _read_file(file) if file is not None else {}
    names = names or list(own)
    if not names:
        raise InputError("nothing to compare: name recipes with --recipes a,b,c, or give --variants FILE.yaml")
    known = {name: (f"recipe={name}",) for name in RECIPES} | own
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, before="") or f"there are {', '.join(known)}"
            raise InputError(f"--recipes: there is no recipe or variant '{name}': {hint}", docs="recipes")
    if len(set(names)) < len(names):
        raise InputError("--recipes: a name occurs twice")
    return {name: known[name] for name in names}


def _read_file(path: Path) -> dict[str, Overrides]:
    tree = config_tree(path)
    for name, overrides in tree.items():
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise InputError(f"{path}: variant '{name}' must be a list of section.key=value, e.g. [recipe=grpo]")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{path}: variant {name!r} must have a name of letters, digits, spaces and . + = - _")
    return {name: tuple(overrides) for name, overrides in tree.items()}
