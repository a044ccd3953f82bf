"""Generate the reference pages from the code: all settings from the configuration classes, all verbs from the parser.

python docs/reference.py    # rewrites docs/configuration.md and docs/cli.md
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pacedrl.cli import build_parser
from pacedrl.config import Config
from pacedrl.config.base import MAY_CHANGE

ROOT = Path(__file__).resolve().parents[1]
TYPES = {"string": "text", "boolean": "true or false", "object": "mapping"}
MORE = {
    "calibrate": "[what its table means](guide.md#calibration)",
    "report": "[how to read the plots](guide.md#reading-the-plots)",
    "watch": "[how to read the plots](guide.md#reading-the-plots)",
}
"""Links from a verb to the part of the guide that explains its output."""
BOUNDS = {
    "exclusiveMinimum": "more than {:g}",
    "minimum": "at least {:g}",
    "exclusiveMaximum": "less than {:g}",
    "maximum": "at most {:g}",
    "minItems": "not empty",
}


def main() -> None:
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The text of each generated page by its file name in docs/."""
    return {"configuration.md": configuration(), "cli.md": command_line()}


def configuration() -> str:
    """The page of all settings, ordered by section and variant."""
    package = griffe.load("pacedrl.config", search_paths=[ROOT])
    lines = [
        "# Configuration",
        "",
        "This page lists all settings; it is generated from the classes in `pacedrl/config`. The defaults are the"
        " paper's recipe. Another `recipe` changes some of them, and user settings override the recipe;"
        " [`pacedrl recipes NAME`](cli.md#pacedrl-recipes) prints the resulting configuration. In YAML, a setting is a"
        " key in its section; on the command line, it is written `section.key=value`. An unknown key is an error that"
        " suggests the most similar one. A leading `~` in a path stands for the home folder.",
        "",
        "A resumed run may change settings and sections marked *Free*. They affect memory, speed, locations or"
        " reporting, but not what a step computes, except for rounding. Any other change is refused.",
        "",
        *_table(Config, package, "", _free, own_fields_only=True),
    ]
    for name, field in Config.model_fields.items():
        free = _unmarked if _is_free(field) else _free
        variants = list(_models(field.annotation))
        if variants:
            lines += ["", f"## `{name}` {{#{name}}}", ""]
        for variant in variants:
            if len(variants) > 1:
                tag = variant.model_fields["name"].default
                mark = " (the default)" if isinstance(field.default, variant) else ""
                lines += ["", f"### `{name}.name: {tag}`{mark} {{#{name}-{tag}}}", ""]
            mark = " *Free.*" if _is_free(field) else ""
            lines += [_code(inspect.getdoc(variant) or "") + mark, "", *_table(variant, package, name, free)]
            for key, inner in variant.model_fields.items():
                for model in _models(inner.annotation):
                    lines += _nested(model, package, f"{name}.{key}", _unmarked if _is_free(inner) else free)
    return "\n".join(lines) + "\n"


def _is_free(field: FieldInfo) -> bool:
    return MAY_CHANGE in field.metadata


def _free(field: FieldInfo) -> str:
    """The mark at the end of a setting's description."""
    return " *Free.*" if _is_free(field) else ""


def _unmarked(field: FieldInfo) -> str:
    """No mark: the section itself is marked."""
    return ""


def _nested(model: type[BaseModel], package: Any, path: str, free: Callable[[FieldInfo], str]) -> Iterator[str]:
    if path == "data.eval":  # It has the same settings as data.train.
        return
    yield from ["", f"### `{path}` {{#{path.replace('.', '-')}}}", "", _code(inspect.getdoc(model) or ""), ""]
    yield from _table(model, package, path, free)
    for key, field in model.model_fields.items():
        for inner in _models(field.annotation):
            yield from _nested(inner, package, f"{path}.{key}", free)


def _table(
    model: type[BaseModel], package: Any, path: str, free: Callable[[FieldInfo], str], own_fields_only: bool = False
) -> list[str]:
    documented = package[model.__module__.removeprefix("pacedrl.config.")][model.__name__].all_members
    schemas = model.model_json_schema()["properties"]
    rows = []
    for key, field in model.model_fields.items():
        schema, has_sections = schemas[key], any(_models(field.annotation))
        if (own_fields_only and has_sections) or "const" in schema:  # The name of a variant is in its heading.
            continue
        docstring = documented[key].docstring
        text = _code(docstring.value) if docstring else ""
        default = ("see below" if schema["default"] else "none") if has_sections else _default(schema)
        full = f"{path}.{key}" if path else key
        rows.append(f"| `{full}` | {_type(schema)} | {default} | {text}{free(field)} |")
    return ["| setting | type | default | |", "|---|---|---|---|", *rows] if rows else ["No settings."]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes that occur in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _type(schema: dict[str, Any]) -> str:
    """The type in a JSON schema in words, with its bounds."""
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        text = ", ".join(f"`{value}`" for value in schema["enum"])
    elif "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0])}"
    elif schema["type"] == "array":
        text = f"list of {_type(schema['items'])}"
    else:
        text = "path" if schema.get("format") == "path" else TYPES.get(schema["type"], schema["type"])
    return ", ".join([text, *(words.format(schema[key]) for key, words in BOUNDS.items() if key in schema)])


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return "required"
    value = schema["default"]
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"


def _code(text: str) -> str:
    """Convert a docstring to one line of Markdown."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("|", "\\|")


def command_line() -> str:
    """The page of all verbs, generated from the argument parser."""
    parser = build_parser()
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    lines = [
        "# Command line",
        "",
        "`pacedrl VERB --help` prints the same text. Exit codes: 0 success; 1 training had to stop, or some runs of a"
        " comparison failed; 2 bad input, with a one-line message that says what to change; 130 Ctrl-C, after saving"
        " the state.",
        "",
        "`section.key=value` arguments override [settings](configuration.md) of the configuration that the verb reads.",
    ]
    for name, verb in verbs.choices.items():
        usage = " ".join(verb.format_usage().removeprefix("usage: ").split())
        lines += ["", f"## `pacedrl {name}` {{#pacedrl-{name}}}", "", verb.description or ""]
        lines += ["", "```text", usage, "```", ""]
        rows = [_argument(action) for action in verb._actions if not isinstance(action, argparse._HelpAction)]
        lines += ["| argument | |", "|---|---|", *rows] if rows else []
        if name in MORE:
            lines += ["", f"The guide explains {MORE[name]}."]
        if verb.epilog:
            lines += ["", "Example:", "", "```sh", verb.epilog.removeprefix("example: "), "```"]
    return "\n".join(lines) + "\n"


def _argument(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.option_strings and action.nargs != 0 else "")
    name = " ".join(filter(None, [", ".join(action.option_strings), str(value) if value else ""])) or action.dest
    text = (action.help or "") % {**vars(action), "prog": "pacedrl"} if action.help else ""
    required = "; required" if action.required and action.option_strings else ""
    return f"| `{name}` | {text[:1].upper()}{text[1:]}{required} |"


if __name__ == "__main__":
    main()
