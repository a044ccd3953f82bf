"""Messages, tools and other variables that a row passes to the chat template."""

import contextlib
import json
from typing import Any

from pacedrl.errors import InputError
from pacedrl.types import Message

TOOLS_COLUMN = "tools"
OPTIONS_COLUMN = "chat_template_kwargs"
"""Columns with these names are passed to the template, as in TRL."""

DECIDED_HERE = (
    "conversation",
    "messages",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_tensors",
    "return_assistant_tokens_mask",
    "padding",
    "truncation",
    "max_length",
)
"""Arguments of transformers' ``apply_chat_template`` that neither a row nor the configuration can set."""


def messages(values: list[Any], where: str) -> list[Message]:
    """Return the chat messages with all their keys; the content is None in a message that only calls tools.

    Keys whose value is None are left out, because Parquet and Arrow give every message the keys of all others. Raises
    InputError for values that are no messages, for empty messages, and for chats that no answer can follow.
    """
    if len(values) > 1 and _is_empty_answer(values[-1]):
        values = values[:-1]
    chat = [_message(value, where) for value in values]
    if chat[-1]["role"] == "assistant" and "tool_calls" in chat[-1]:
        raise InputError(
            f"{where} ends with a tool call, which is not for the model to answer; add the tool's result as a message "
            "with the role 'tool'"
        )
    return chat


def _is_empty_answer(value: Any) -> bool:
    """Whether this is an empty message of the assistant, which some data sets put in place of the answer."""
    said = _without_none(value) if isinstance(value, dict) else {}
    return said.get("role") == "assistant" and not said.get("content") and not said.get("tool_calls")


def _message(value: Any, where: str) -> Message:
    if isinstance(value, dict) and isinstance(value.get("role"), str):
        known: dict[str, Any] = _without_none(value)
        content = known.get("content")
        calls = from_json(known.pop("tool_calls", None)) or []
        may_be_empty = bool(calls) or value["role"] == "tool"
        well_formed = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
        if calls:
            known["tool_calls"] = calls
        if well_formed and ((isinstance(content, str) and content.strip()) or (may_be_empty and content in (None, ""))):
            return {"role": value["role"], "content": content} | known
    raise InputError(
        f"{where} holds {str(value)[:80]!r}; expected chat messages with a role and non-empty text as content "
        "(or tool_calls, a list of objects)"
    )


def template_options(settings: dict[str, Any], row: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the variables for the chat template: the row's own override the task's ``settings``; its tools are added.

    Raises InputError for columns of these names with other contents.
    """
    own = from_json(row.get(OPTIONS_COLUMN))
    if own is not None and not isinstance(own, dict):
        raise InputError(
            f"{where}: column '{OPTIONS_COLUMN}' holds {str(own)[:60]!r}; expected an object such as "
            '{"enable_thinking": false}'
        )
    options: dict[str, Any] = settings | _without_none(own or {})
    for name in options:
        if name in DECIDED_HERE:
            raise InputError(f"{where}: {OPTIONS_COLUMN}: '{name}' is set by pacedrl itself; leave it out")
    tools = _tools(row.get(TOOLS_COLUMN), where)
    return options | {TOOLS_COLUMN: tools} if tools else options


def _tools(value: Any, where: str) -> list[dict[str, Any]]:
    """Return JSON schemas of functions. In some data sets the list or each of its items is JSON text."""
    tools = from_json(value) or []
    if isinstance(tools, list):
        tools = [from_json(tool) for tool in tools]
        if all(isinstance(tool, dict) for tool in tools):
            return [_without_none(tool) for tool in tools]
    raise InputError(
        f"{where}: column '{TOOLS_COLUMN}' holds {str(value)[:60]!r}; expected a list of JSON schemas for the chat "
        "template; rename the column if it is for something else"
    )


def from_json(value: Any) -> Any:
    """Parse JSON text; return None for blank text, and other values unchanged."""
    if isinstance(value, str):
        if not value.strip():
            return None
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
