"""The configuration. Its defaults ARE the paper's recipe (arXiv 2602.12642, section 5 and appendix).

Where the paper is silent the docstring of the field says so. Unknown keys are errors that name the nearest known key.
"""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pacedrl.errors import InputError

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """Where the run lives and how long it is."""

    dir: Path = Path("runs/default")
    steps: Positive = 150
    seed: NonNegative = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    samples_per_step: NonNegative = 4
    """Completions written to samples.jsonl each step."""


class LoraConfig(Section):
    """Train a low-rank adapter in place of the whole model (needs the ``lora`` extra)."""

    r: Positive = 16
    alpha: Positive = 32
    target_modules: str | list[str] = "all-linear"


class ModelConfig(Section):
    """Any causal language model that transformers can load."""

    name: str = "tiny"
    """A hub name, a local folder, or ``tiny``: the small pretrained model that ships with the package."""
    gguf_file: str | None = None
    """A GGUF file inside ``name`` to load the weights from (needs the ``gguf`` extra)."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off unless you trust it."""
    attn_implementation: str | None = None
    lora: LoraConfig | None = None


class TaskConfig(Section):
    """One set of prompts and the verifier that judges their completions."""

    source: str = "skills"
    """``skills``, ``gym:NAME`` (reasoning-gym), a path to .jsonl, .json, .csv or .parquet, or a hub dataset."""
    name: str | None = None
    """Shown in tables; the source's own name unless given."""
    split: str = "train"
    """Split of a hub dataset; ``train`` or ``test`` of the built-in skills. Ignored for files."""
    columns: dict[Literal["prompt", "answer"], str] = {}
    """Which columns hold the prompt and the answer. verl-style and TRL-style rows need no mapping."""
    prompt_template: str | None = None
    """Builds the prompt from columns, e.g. ``"{Body}. {Question}"``; the result is the user's message or the text."""
    system_prompt: str | None = None
    chat: bool = False
    """Send a plain-text prompt as one user message through the chat template."""
    verifier: str | None = None
    """``math``, ``exact``, ``numeric``, ``gym``, ``path/to/file.py:function`` or ``package.module:function``. From
    Python also a function itself, of TRL's signature and at the top level of a module."""
    options: dict[str, Any] = {}
    """Passed on to the source: reasoning-gym's dataset parameters, the skills' names and sizes, ``load_dataset``'s."""
    skip: NonNegative = 0
    limit: Positive | None = None
    """Rows ``skip : skip + limit`` in file order."""

    @field_validator("verifier", mode="before")
    @classmethod
    def _function_by_reference(cls, value: Any) -> Any:
        return _function_reference(value) if callable(value) else value


class DataConfig(Section):
    """What to train on and what to hold out."""

    train: list[TaskConfig] = [TaskConfig()]
    eval: list[TaskConfig] = []
    overlong: Literal["error", "drop"] = "error"
    """What to do with prompts of more than ``sampling.max_prompt_tokens`` tokens."""

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _one_task_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value


class SamplingConfig(Section):
    """Rollouts of a step: ``prompts_per_step`` × ``group_size`` completions."""

    prompts_per_step: Positive = 128
    """P. The paper does not state it; 128 is ours."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """G. At G = 1 no group can be mixed and accuracy is observed as 0 or 1 only: refused."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_prompt_tokens: Positive = 1024
    max_new_tokens: Positive = 3072
    batch_size: Positive = 256
    """Sequences decoded at once."""


class ObjectiveConfig(Section):
    """Trajectory balance against the behaviour policy."""

    beta: Annotated[float, Field(gt=0.0)] = 0.05


class SelectionConfig(Section):
    """Which prompts next: the P with the smallest |accuracy estimate − target|."""

    target_accuracy: Probability = 0.5
    explore_fraction: Probability = 0.0
    """Share of the batch drawn uniformly. The paper is silent; 0 is its letter."""
    cooldown_steps: NonNegative = 0
    """Steps a prompt rests after use. The paper is silent; 0 is its letter."""


class PartitionConfig(Section):
    """The learned log partition function and its own optimiser (the paper states neither; these are measured)."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    """Of a matrix with fan-in 64; one with fan-in n learns at 64/n of it."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    fit_steps: Positive = 4
    """Optimiser steps on each batch of rollouts."""
    hidden_size: Positive | None = None
    """Width; the embedding's own unless given."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    prior_accuracy: Probability = 0.5
    """Accuracy estimate of every prompt before anything was observed."""


class ReplayConfig(Section):
    """Accuracy-estimation-error-prioritised replay of correct completions."""

    capacity: NonNegative = 128
    """0 turns replay off."""
    admit: Positive = 64
    """Completions of a step that enter the buffer, by descending priority; the oldest leave when it is full."""
    max_age: Positive = 8
    """Steps after which a completion leaves whatever the buffer's fill (the paper is silent)."""
    anchor: Literal["behaviour", "current"] = "behaviour"
    """The μ of a replayed completion: its log-probs when it was sampled, or the policy's at the step's start."""
    train_partition: bool = False
    """Whether replayed completions also fit log Z; they are all correct, so they push it upwards."""


class OptimizerConfig(Section):
    """AdamW on the policy."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    tokens_per_micro_batch: Positive = 16384
    """Padded tokens (prompt and completion) in one forward and backward pass."""
    gradient_checkpointing: bool = False


class VerifierConfig(Section):
    """The processes that judge completions."""

    workers: Positive = 2
    timeout_s: Annotated[float, Field(gt=0.0)] = 10.0
    """Wall-clock seconds one completion may take; past it the worker is killed and the verdict is an error."""
    check_gold: bool = True
    """Refuse to start when a verifier rejects every gold answer it is shown."""


class EvalConfig(Section):
    """Evaluation on ``data.eval`` during training."""

    every: NonNegative = 0
    """Steps between evaluations; 0 evaluates at the start and the end only."""
    samples: Positive = 8
    """Completions a prompt."""
    k: Annotated[list[Positive], Field(min_length=1)] = [1, 8]
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _enough_samples(self) -> EvalConfig:
        if max(self.k) > self.samples:
            raise ValueError(f"k = {max(self.k)} needs at least as many samples a prompt, not {self.samples}")
        return self


class CheckpointConfig(Section):
    """Written whole or not at all; the last step is always kept."""

    every: Positive = 25
    keep: Positive = 2


class TrackingConfig(Section):
    """Trackers beside metrics.jsonl (needs the ``trackers`` extra)."""

    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    project: str = "pacedrl"


class Config(Section):
    """A whole run."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    selection: SelectionConfig = SelectionConfig()
    partition: PartitionConfig = PartitionConfig()
    replay: ReplayConfig = ReplayConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    verifier: VerifierConfig = VerifierConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    versions: dict[str, str] = {}
    """What a run was made with: written into its config.yaml, not read."""


def load_config(path: Path | None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides (values parsed as YAML) and validate.

    Raises InputError with one line that names the file and the field.
    """
    return parse_config(config_tree(path, overrides), str(path) if path is not None else "config")


def config_tree(path: Path | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """The YAML file (nothing without one) with the overrides applied, not validated yet."""
    tree = _read_yaml(path) if path is not None else {}
    for override in overrides or []:
        _apply_override(tree, override)
    return tree


def parse_config(tree: dict[str, Any], where: str = "config") -> Config:
    """Validate a plain mapping; InputError names ``where`` and the first offending field."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{where}: {_first_problem(error)}") from None


def dump_config(config: Config) -> dict[str, Any]:
    """The whole configuration as plain YAML-ready values."""
    return config.model_dump(mode="json")


def _function_reference(function: Any) -> str:
    """Where verifier processes find a function: ``file.py:name``. Raises ValueError where they could not."""
    name = getattr(function, "__qualname__", type(function).__name__)
    if not inspect.isfunction(function) or "<" in name:
        raise ValueError(f"{name} must be a function at the top level of a module: other processes import it by name")
    try:
        return f"{inspect.getfile(function)}:{name}"
    except (OSError, TypeError):
        raise ValueError(f"{name} must be defined in a file: other processes import it from there") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the config file ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of sections (run, model, data, ...), got {type(tree).__name__}")
    return tree


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals:
        raise InputError(f"override '{override}': expected section.key=value, e.g. run.steps=10")
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for name in parents:
        node = node[0] if isinstance(node, list) and len(node) == 1 else node
        if not isinstance(node, dict) or not isinstance(node.get(name, {}), dict | list):
            raise InputError(f"override '{override}': '{name}' is not a section")
        node = node.setdefault(name, {})
    node = node[0] if isinstance(node, list) and len(node) == 1 else node
    if not isinstance(node, dict):
        raise InputError(f"override '{override}': '{'.'.join(parents)}' is a list of several; edit the file instead")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"override '{override}': the value is not valid YAML") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{field}'{_nearest(problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"


def _nearest(location: tuple[int | str, ...]) -> str:
    *parents, unknown = (part for part in location if isinstance(part, str))
    section: type[BaseModel] = Config
    for name in parents:
        section = _section_of(section, name)
    known = list(section.model_fields)
    close = difflib.get_close_matches(unknown, known, n=1, cutoff=0.4)
    return f": did you mean '{'.'.join([*parents, close[0]])}'?" if close else f": known keys are {', '.join(known)}"


def _section_of(section: type[BaseModel], name: str) -> type[BaseModel]:
    def find(annotation: Any) -> type[BaseModel] | None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        return next(filter(None, map(find, getattr(annotation, "__args__", ()))), None)

    return find(section.model_fields[name].annotation) or section
