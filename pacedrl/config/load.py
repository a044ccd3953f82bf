"""Read a configuration from YAML and the command line, with one-line errors that name the file and the field."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pacedrl.config.config import Config
from pacedrl.errors import InputError, Page
from pacedrl.paths import expand_home

VARIANTS = tuple(name for name, field in Config.model_fields.items() if field.discriminator)
"""Sections whose ``name`` field selects a variant with its own settings."""
REMOVED = {
    "partition.projection": "it was removed; for many prompts, set partition.name=closed_form",
    "partition.rescore_share": "it was removed; for many prompts, set partition.name=closed_form",
    "optimizer.activation_offload": "it was removed; optimizer.gradient_checkpointing=true saves more memory",
}
"""Maps settings that were removed to the advice that the error message gives."""
PAGES: dict[str, Page] = {
    "recipe:": "recipes",
    "scale.": "scale",
    "sampling.servers": "serving",
    "objective.name": "configuration",
    "estimator.name": "configuration",
    "gate.name": "configuration",
    "partition.name": "configuration",
}
"""Documentation page to point to, by the beginning of the error message."""
EXPECTED = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "too_short": "a list of at least {min_length}",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
"""Says what a setting expects, for each type of pydantic's errors; errors of other types keep pydantic's words."""


def load_config(path: Path | None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides (values parsed as YAML) and validate.

    Raises InputError with a one-line message that names the field, and the file or the command line.
    """
    return parse_config(config_tree(path, overrides), str(path) if path is not None else "config", overrides or ())


def config_tree(path: Path | None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read the YAML file, if there is one, and apply the overrides, without validation."""
    tree = _read_yaml(path) if path is not None else {}
    for override in overrides or []:
        apply_override(tree, override)
    return tree


def parse_config(tree: dict[str, Any], where: str = "config", overrides: Sequence[str] = ()) -> Config:
    """Validate a plain mapping, in which the overrides are applied already.

    Raises InputError that names the first invalid field and ``where``, or the command line if an override set it.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        field, problem = _first_problem(error)
        raise InputError(f"{_origin(field, problem, where, overrides)}: {problem}", docs=_page(problem)) from None


def dump_config(config: Config) -> dict[str, Any]:
    """The complete configuration as plain values that can be written as YAML."""
    return config.model_dump(mode="json")


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; PyYAML's loaders silently keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in reversed(node.value):
            if key.tag != "tag:yaml.org,2002:merge" and keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(expand_home(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot read the config file ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of sections (run, model, data, ...), got {type(tree).__name__}")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one ``section.key=value`` in the tree.

    A list of one element counts as that element. Raises InputError for any other form, and for a path through a list of
    several elements.
    """
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


def _page(problem: str) -> Page | None:
    """The documentation page for an error message."""
    if problem.startswith("unknown key"):
        return "configuration"
    return next((page for setting, page in PAGES.items() if problem.startswith(setting)), None)


def _origin(field: str, problem: str, where: str, overrides: Sequence[str]) -> str:
    """Return where the problem's settings come from: ``where``, the command line, or both."""
    keys = [override.partition("=")[0] for override in overrides]
    if any(problem.startswith(f"{key}:") or f"{field}.".startswith(f"{key}.") for key in keys):
        return "command line"
    if any(not field or key.startswith(f"{field}.") for key in keys):  # a check of several settings
        return f"{where} and command line"
    return where


def _first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the first invalid field, without positions in lists, and the message.

    The field is empty for a check across sections, whose message names it.
    """
    problem = error.errors()[0]
    location = problem["loc"]
    # pydantic puts the variant between the section and its field: objective.grpo.clip_low
    path = [*location[:1], *location[2:]] if len(location) > 2 and location[0] in VARIANTS else list(location)
    field, settings = ".".join(map(str, path)), ".".join(part for part in path if isinstance(part, str))
    if problem["type"] == "extra_forbidden":
        return settings, f"unknown key '{field}'{_nearest(location, path)}"
    if problem["type"] == "union_tag_invalid":
        tag, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"{settings}.name", f"{field}.name: unknown '{tag}'; expected one of {known}"
    message, got = problem["msg"].removeprefix("Value error, "), repr(problem["input"])
    if not path:
        return "", message
    expected = EXPECTED.get(problem["type"], "").format(**problem.get("ctx", {}))
    if not expected and message.startswith("Input should be "):
        expected = message.removeprefix("Input should be ")
    if expected:
        return settings, f"{field}: expected {expected}, got {got}"
    return settings, f"{field}: {message[0].lower()}{message[1:]} (got {got})"


def _nearest(location: tuple[int | str, ...], path: list[int | str]) -> str:
    *parents, unknown = (part for part in path if isinstance(part, str))
    if (removed := REMOVED.get(".".join([*parents, unknown]))) is not None:
        return f": {removed}"
    section: type[BaseModel] = Config
    for name in parents:
        section = _section_of(section, name, str(location[1]) if name in VARIANTS else None)
    known = list(section.model_fields)
    of_variant = len(path) < len(location)
    # The key may belong to another variant, so only a close match counts as a misspelling.
    close = difflib.get_close_matches(unknown, known, n=3, cutoff=0.6 if of_variant else 0.4)
    if close:
        # A tie goes to the key with the same first letters: 'sampler' means 'sampling', not 'scale'.
        likeness = {name: difflib.SequenceMatcher(None, name, unknown).ratio() for name in close}
        nearest = max(close, key=lambda name: (likeness[name], name[:3] == unknown[:3]))
        return f": did you mean '{'.'.join([*parents, nearest])}'?"
    where = f" of {location[0]}.name = {location[1]}" if of_variant else ""
    return f"{where}: known keys are {', '.join(known)}"


def _section_of(section: type[BaseModel], name: str, variant: str | None) -> type[BaseModel]:
    def find(annotation: Any) -> type[BaseModel] | None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation if variant is None or annotation.model_fields["name"].default == variant else None
        return next(filter(None, map(find, getattr(annotation, "__args__", ()))), None)

    return find(section.model_fields[name].annotation) or section
