"""Turns the rows of a source into prompts."""

import datetime
import json
import math
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import Any

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.chats import messages, template_options
from pacedrl.tasks.columns import find_column, no_column, value_at
from pacedrl.tasks.files import Row, Rows
from pacedrl.tasks.games import GOLD_FIELDS, gold_of_fields
from pacedrl.tasks.sources import default_name, default_verifier, read_rows
from pacedrl.tasks.verifiers import resolve
from pacedrl.types import Message, Prompt, prompt_key

_NEED_AN_ANSWER = ("math", "exact", "numeric", "countdown", "knights_knaves")


@dataclass(frozen=True)
class RewardPart:
    """A verifier, its options, and the weight of its reward: None for the verdict of correctness itself."""

    name: str
    verifier: str
    weight: float | None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Prompts without duplicates, in source order, and how their completions are judged.

    ``verifier`` names the verifier that decides whether a completion is correct; ``parts`` add to its reward.
    """

    name: str
    prompts: list[Prompt]
    verifier: str
    options: dict[str, Any] = field(default_factory=dict)
    parts: tuple[RewardPart, ...] = ()

    @property
    def correctness(self) -> RewardPart:
        return RewardPart("correctness", self.verifier, None, self.options)


def load_task(config: TaskConfig) -> Task:
    """Read the prompts of one task and check that its verifier exists.

    ``Prompt.columns`` contains the row's columns as JSON values, without the prompt's own column and without an
    ``answer`` column that became ``Prompt.answer``. The first of several rows with the same prompt, answer and
    template options is kept. The first row decides which columns are read. Raises InputError that names file and row.
    """
    name = config.name or default_name(config.source)
    verifier = config.verifier or default_verifier(config.source)
    resolve(verifier, config.verifier_options)
    parts = _parts(config)
    stop = None if config.limit is None else config.skip + config.limit
    prompts: dict[str, Prompt] = {}
    for prompt in read_prompts(config, name, verifier, islice(read_rows(config), config.skip, stop)):
        prompts.setdefault(prompt.key, prompt)
    if not prompts:
        skipped = f" after skipping {config.skip}" if config.skip else ""
        raise InputError(f"{config.source}: holds no rows{skipped}; expected one prompt per row")
    return Task(name, list(prompts.values()), verifier, config.verifier_options, parts)


def read_prompts(
    config: TaskConfig, task: str, verifier: str, rows: Rows, *, prompt_optional: bool = False
) -> Iterator[Prompt]:
    """Yield the prompt of every row in order: an empty one if ``prompt_optional`` and there is no prompt column."""
    columns: tuple[str | None, str | None] | None = None
    for where, raw in rows:
        row = {str(column): _json_value(value, f"{where}: column '{column}'") for column, value in raw.items()}
        columns = columns or _find_columns(config, verifier, row, where, prompt_optional)
        yield _prompt(config, task, verifier, columns, row, where)


def _parts(config: TaskConfig) -> tuple[RewardPart, ...]:
    for part in config.extra_rewards:
        resolve(part.verifier, part.options)
    names = [part.name for part in config.extra_rewards]
    for name in {*names}:
        if name in ("correctness", "overlong") or names.count(name) > 1:
            raise InputError(
                f"{config.source}: extra_rewards: the name '{name}' is taken; give each part its own", docs="verifiers"
            )
    return tuple(RewardPart(part.name, part.verifier, part.weight, part.options) for part in config.extra_rewards)


def _find_columns(
    config: TaskConfig, verifier: str, row: Row, where: str, prompt_optional: bool
) -> tuple[str | None, str | None]:
    """Return the columns of the prompt and the answer; the prompt has none if a template builds it."""
    if config.prompt_template is not None and "prompt" in config.columns:
        raise InputError(f"{config.source}: columns.prompt and prompt_template both make the prompt; keep one")
    prompt = None
    if config.prompt_template is None:
        prompt = config.columns.get("prompt", find_column("prompt", row))
        if prompt is None and not prompt_optional:
            advice = "columns.prompt, or build the prompt with prompt_template"
            raise no_column("prompt", row, where, advice)
    answer = config.columns.get("answer", find_column("answer", row))
    if answer is None and verifier in _NEED_AN_ANSWER:
        why = f", and the verifier '{verifier}' needs one"
        raise no_column("answer", row, where, "columns.answer", why)
    return prompt, answer


def _prompt(
    config: TaskConfig, task: str, verifier: str, columns: tuple[str | None, str | None], row: Row, where: str
) -> Prompt:
    prompt_column, answer_column = columns
    content: str | list[Message] = [] if config.chat else ""
    if config.prompt_template is not None:
        content = _content(config, fill(config.prompt_template, row, where), "prompt_template", where)
    elif prompt_column is not None:
        content = _content(config, value_at(row, prompt_column, where), prompt_column, where)
    _require_unicode(content, where)
    answer = None if answer_column is None else value_at(row, answer_column, where)
    if verifier in GOLD_FIELDS:
        answer = gold_of_fields(verifier, answer, row)
    if verifier in _NEED_AN_ANSWER and (answer is None or (isinstance(answer, float) and math.isnan(answer))):
        raise InputError(
            f"{where}: the answer (column '{answer_column}') is empty, and the verifier '{verifier}' needs one; "
            "remove the row or fill it in"
        )
    used = {prompt_column, "answer" if answer_column == "answer" else None}
    rest = {column: value for column, value in row.items() if column not in used}
    options = _template_options(config, row, content, where)
    return Prompt(prompt_key(content, answer, options), task, content, answer, rest, options, where)


def _template_options(config: TaskConfig, row: Row, content: str | list[Message], where: str) -> dict[str, Any]:
    if isinstance(content, list):
        return template_options(config.chat_template_kwargs, row, where)
    if config.chat_template_kwargs:
        raise InputError(
            f"{where}: chat_template_kwargs are for chat prompts, and this one is plain text; set chat: true, or leave "
            "them out"
        )
    return {}


def fill(template: str, row: Row, where: str) -> str:
    """Fill the fields of a prompt template with the row's columns."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        for column in (re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields):
            if column and value_at(row, column, where) is None:
                raise InputError(f"{where}: column '{column}' is empty, and prompt_template uses it")
        return template.format_map(row)
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise InputError(
            f"{where}: prompt_template does not fit: {error}; fields are columns in braces ({', '.join(row)}), "
            "literal braces are doubled"
        ) from None


def _content(config: TaskConfig, value: Any, column: str, where: str) -> str | list[Message]:
    """Return the prompt as text, or as chat messages if the row, ``chat`` or ``system_prompt`` makes it a chat."""
    if isinstance(value, str) and value.strip():
        if not config.chat and config.system_prompt is None:
            return value
        chat: list[Message] = [{"role": "user", "content": value}]
    elif isinstance(value, list) and value:
        chat = messages(value, f"{where}: the prompt (column '{column}')")
    elif value is None or isinstance(value, str | list):
        raise InputError(f"{where}: the prompt (column '{column}') is empty; remove the row or fill it in")
    else:
        raise InputError(
            f"{where}: the prompt (column '{column}') is a {type(value).__name__}; expected text or chat messages"
        )
    if config.system_prompt is not None:  # replaces the row's own
        chat = [message for message in chat if message["role"] != "system"]
        chat.insert(0, {"role": "system", "content": config.system_prompt})
    return chat


def _require_unicode(content: str | list[Message], where: str) -> None:
    """Raise InputError for half of a surrogate pair, which JSON can contain and no tokenizer can read."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the prompt holds the lone surrogate {error.object[error.start]!r}, not a character; was "
            "the text cut off there? Correct or remove the row"
        ) from None


def _json_value(value: Any, where: str) -> Any:
    """Convert to a JSON value, for verifiers in other processes: tuples become lists, dates ISO strings."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _json_value(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item, where) for item in value]
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return _json_value(value.tolist(), where)
    raise InputError(f"{where} holds a {type(value).__name__}, which verifiers cannot be sent; remove the column")
