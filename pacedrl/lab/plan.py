"""What a comparison runs: variants of one configuration, each from the same seeds, at one budget of rollouts."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pacedrl.config import Config, DynamicGateConfig, apply_override, config_tree, parse_config
from pacedrl.errors import InputError
from pacedrl.lab.measures import FINAL
from pacedrl.paths import replace_text
from pacedrl.recipes import RECIPES
from pacedrl.rollouts.tasks import load_tasks, require_enough_prompts, unique_prompts
from pacedrl.tasks.sources import default_name
from pacedrl.training.folder_lock import FolderBusy, FolderLock
from pacedrl.training.run_folder import refuse_another_run

EVALUATIONS = 12
"""On the way, unless the configuration says how often."""
_NAME = re.compile(r"\w[\w .+=-]*")

Overrides = tuple[str, ...]
"""``section.key=value``, as on the command line."""


@dataclass(frozen=True)
class Run:
    """One variant, one seed."""

    variant: str
    seed: int
    folder: Path
    overrides: Overrides

    @property
    def finished(self) -> bool:
        return (self.folder / FINAL).exists()

    @property
    def log(self) -> Path:
        """What the run says, its last line the reason where it failed."""
        return self.folder.with_suffix(".log")


@dataclass(frozen=True)
class Plan:
    """A comparison; ``tree`` is the configuration that all variants start from."""

    tree: Mapping[str, Any]
    variants: Mapping[str, Overrides]
    seeds: Sequence[int]
    rollouts: int
    """The budget of generated completions of each run."""
    final_k: Sequence[int]
    """The ks of the last evaluation's pass@k; the largest is its number of samples."""
    counted: Sequence[str]
    """The evaluation tasks whose mean is the accuracy that is compared; none: all."""
    folder: Path

    @property
    def config_path(self) -> Path:
        """What the runs read: the configuration that all have in common."""
        return self.folder / "comparison.yaml"

    @property
    def _settings_path(self) -> Path:
        return self.folder / "comparison.json"

    def runs(self) -> list[Run]:
        """Seed by seed, so that a comparison cut short has all variants for the first seeds."""
        return [
            Run(name, seed, folder := self.folder / "runs" / name / f"seed{seed}", self._overrides(name, seed, folder))
            for seed in self.seeds
            for name in self.variants
        ]

    def check(self) -> None:
        """Raise InputError for what would fail later, and for a folder that holds something else."""
        configs = {name: self._config(name, self.seeds[0]) for name in self.variants}
        for name, config in configs.items():
            self._check_evaluation(name, config, next(iter(configs.values())))
            if isinstance(config.gate, DynamicGateConfig) and config.optimizer.schedule != "constant":
                raise InputError(
                    f"variant {name}: optimizer.schedule: with gate.name=dynamic nobody knows how many steps the "
                    "budget is worth; set it to constant"
                )
        self._check_data(configs)
        self._check_folder()

    def write(self) -> None:
        """Make the folder, with what its runs have in common. Raises InputError where that cannot be written."""
        tree = yaml.safe_dump(dict(self.tree), sort_keys=False, allow_unicode=True)
        whole = self.with_earlier()
        compared = {"variants": {name: list(own) for name, own in whole.variants.items()}, "seeds": list(whole.seeds)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_text(self._settings_path, json.dumps(self._settings() | compared, indent=2) + "\n")
            replace_text(self.config_path, tree)
        except OSError as error:
            raise InputError(
                f"--out: cannot write to '{self.folder}' ({error.strerror}); choose another folder"
            ) from None

    def with_earlier(self) -> Plan:
        """The same comparison with what earlier calls finished in its folder: their variants and seeds beside ours."""
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
        """Keep other comparisons out of the folder. Raises InputError where one is at work."""
        lock = FolderLock(self.folder)
        try:
            lock.take()
        except FolderBusy:
            raise InputError(
                f"--out: another comparison is at work in '{self.folder}'; wait for it, or choose another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _check_evaluation(self, name: str, config: Config, first: Config) -> None:
        if not config.data.eval:
            raise InputError("data.eval: a comparison needs held-out prompts; add some")
        if (config.data.eval, config.eval) != (first.data.eval, first.eval):
            raise InputError(
                f"variant {name}: data.eval or eval differs from the other variants': nothing to compare by"
            )
        if 1 not in config.eval.k:
            raise InputError(f"eval.k: a comparison needs pass@1; add 1 to {config.eval.k}")
        if config.eval.temperature == 0.0 and max(self.final_k) > 1:
            raise InputError("eval.temperature: at 0 all samples are the same; raise it, or set --final-k 1")
        names = [task.name or default_name(task.source) for task in config.data.eval]
        for task in self.counted:
            if task not in names:
                raise InputError(f"--count: there is no evaluation task '{task}'; there are {', '.join(names)}")

    def _check_data(self, configs: Mapping[str, Config]) -> None:
        """Load each set of data once, before all the runs do."""
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
        path, settings = self._settings_path, self._settings()
        if not path.exists():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise InputError(f"--out: '{self.folder}' exists and holds no comparison; choose another folder")
            return
        earlier = self._recorded()
        if {name: earlier.get(name) for name in settings} != settings:
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
        """What earlier calls wrote of the comparison in this folder."""
        path = self._settings_path
        recorded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return recorded

    def _settings(self) -> dict[str, Any]:
        return {"config": json.loads(json.dumps(self.tree)), "rollouts": self.rollouts, "final_k": list(self.final_k)}

    def _config(self, name: str, seed: int) -> Config:
        return parse_config(_with(self.tree, self._own(name, seed)), f"variant {name}")

    def _overrides(self, name: str, seed: int, folder: Path) -> Overrides:
        config = self._config(name, seed)
        oversample = config.gate.selection_factor
        a_step = config.sampling.prompts_per_step * config.sampling.group_size * oversample
        budget = (f"run.steps={math.ceil(self.rollouts / a_step)}", f"run.max_rollouts={self.rollouts}")
        return (*self._grid(config), *self._own(name, seed), *budget, f"run.dir={json.dumps(str(folder))}")

    def _own(self, name: str, seed: int) -> Overrides:
        own = (override.replace("{seed}", str(seed)) for override in self.variants[name])
        return (f"run.seed={seed}", *own)

    def _grid(self, config: Config) -> Overrides:
        if config.eval.every or config.eval.every_rollouts:
            return ()
        return (f"eval.every_rollouts={max(self.rollouts // EVALUATIONS, 1)}",)


def read_variants(recipes: str | None, file: Path | None) -> dict[str, Overrides]:
    """Name → overrides: the recipes named, out of the table of recipes or the file; all of the file where none are.

    The file is YAML, each name a list of ``section.key=value``, in which ``{seed}`` stands for a run's seed. Raises
    InputError.
    """
    own = _variants_file(file) if file is not None else {}
    names = recipes.split(",") if recipes else list(own)
    if not names:
        raise InputError("nothing to compare: name recipes with --recipes a,b,c, or give --variants FILE.yaml")
    known = {name: (f"recipe={name}",) for name in RECIPES} | own
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known)}"
            raise InputError(f"--recipes: there is no recipe or variant '{name}': {hint}", docs="recipes")
    if len(set(names)) < len(names):
        raise InputError("--recipes: a name occurs twice")
    return {name: known[name] for name in names}


def _variants_file(path: Path) -> dict[str, Overrides]:
    tree = config_tree(path)
    for name, overrides in tree.items():
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise InputError(f"{path}: variant '{name}' must be a list of section.key=value, e.g. [recipe=grpo]")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"{path}: variant {name!r} must have a name of letters, digits, spaces and . + = - _")
    return {name: tuple(overrides) for name, overrides in tree.items()}


def _with(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(tree))
    for override in overrides:
        apply_override(changed, override)
    return changed
