"""What a comparison runs: variants of one configuration, each from the same seeds, at one budget of rollouts."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pacedrl.config import Config, apply_override, config_tree, parse_config
from pacedrl.errors import InputError
from pacedrl.lab.measures import FINAL
from pacedrl.recipes import RECIPES

EVALUATIONS = 12
"""On the way, unless the configuration says how often."""
FINAL_K = (1, 2, 4, 8, 16, 32, 64)

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
        return self.folder / "config.yaml"

    def runs(self) -> list[Run]:
        """Seed by seed, so that a comparison cut short has all variants for the first seeds."""
        return [
            Run(name, seed, folder := self.folder / "runs" / name / f"seed{seed}", self._overrides(name, seed, folder))
            for seed in self.seeds
            for name in self.variants
        ]

    def check(self) -> None:
        """Raise InputError for a variant that is no valid configuration, or a folder of another comparison."""
        for name in self.variants:
            config = parse_config(
                _with(self.tree, self._overrides(name, self.seeds[0], self.folder)), f"variant {name}"
            )
            if not config.data.eval:
                raise InputError("data.eval: a comparison needs held-out prompts; add some")
            names = [task.name or task.source for task in config.data.eval]
            for task in self.counted:
                if task not in names:
                    raise InputError(f"--count: there is no evaluation task '{task}'; there are {', '.join(names)}")
        settings = self.folder / "comparison.json"
        if settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != self._settings():
            raise InputError(
                f"{settings}: this folder holds a comparison of another configuration, budget or final k; give another "
                "folder with --out"
            )

    def write(self) -> None:
        """Make the folder, with the configuration that the runs read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(self.tree), sort_keys=False, allow_unicode=True)
        self.config_path.write_text(text, encoding="utf-8")
        (self.folder / "comparison.json").write_text(json.dumps(self._settings(), indent=2) + "\n", encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        return {"config": json.loads(json.dumps(self.tree)), "rollouts": self.rollouts, "final_k": list(self.final_k)}

    def _overrides(self, name: str, seed: int, folder: Path) -> Overrides:
        config = parse_config(_with(self.tree, self._own(name, seed)), f"variant {name}")
        steps = math.ceil(self.rollouts / (config.sampling.prompts_per_step * config.sampling.group_size))
        budget = (f"run.steps={steps}", f"run.max_rollouts={self.rollouts}")
        return (*self._grid(config), f"run.seed={seed}", *self._own(name, seed), *budget, f"run.dir={folder}")

    def _own(self, name: str, seed: int) -> Overrides:
        return tuple(override.replace("{seed}", str(seed)) for override in self.variants[name])

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
            raise InputError(f"--recipes: there is no recipe or variant '{name}': {hint}")
    if len(set(names)) < len(names):
        raise InputError("--recipes: a name occurs twice")
    return {name: known[name] for name in names}


def _variants_file(path: Path) -> dict[str, Overrides]:
    tree = config_tree(path)
    for name, overrides in tree.items():
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise InputError(f"{path}: variant '{name}' must be a list of section.key=value, e.g. [recipe=grpo]")
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise InputError(f"{path}: variant {name!r} must have a name that can be a folder's")
    return {name: tuple(overrides) for name, overrides in tree.items()}


def _with(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(tree))
    for override in overrides:
        apply_override(changed, override)
    return changed
