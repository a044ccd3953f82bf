"""Turning prompts into token ids: messages through the model's chat template, plain text unchanged."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pacedrl.errors import InputError
from pacedrl.tasks.completions import END_OF_THINK, THINK
from pacedrl.types import Message, Prompt

_WRITTEN_THOUGHTS = re.compile(rf"{THINK}\s*({END_OF_THINK}\s*)?$")


def prompt_ids(tokenizer: Any, prompt: Prompt, vocabulary: int | None = None) -> list[int]:
    """Return a prompt's token ids. Raises InputError as `token_ids` does; the message names the task and the row."""
    try:
        return token_ids(tokenizer, prompt.content, prompt.template_options, vocabulary)
    except InputError as error:
        raise InputError(f"task {prompt.task}: {prompt.row or repr(prompt.question[:60])}: {error}") from None


def token_ids(
    tokenizer: Any,
    content: str | Sequence[Message],
    options: Mapping[str, Any] | None = None,
    vocabulary: int | None = None,
) -> list[int]:
    """Return the token ids of a text or of messages. ``options`` are further variables of the template.

    The template writes its own special tokens, so none are added to its output and BOS is not doubled.

    Raises InputError if messages have no template, if the template refuses them, if there is no token, and if a token
    id is not below ``vocabulary``, the size of the model's vocabulary.
    """
    if isinstance(content, str):
        ids = tokenizer(content, verbose=False).input_ids
    else:
        ids = tokenizer(rendered(tokenizer, content, options or {}), add_special_tokens=False, verbose=False).input_ids
    if not ids:
        what = "the prompt" if isinstance(content, str) else "the chat template's output for the prompt"
        raise InputError(f"{what} has no tokens: there is nothing to sample from")
    if vocabulary is not None and max(ids) >= vocabulary:
        raise InputError(
            f"model.name: the tokenizer writes {tokenizer.decode([max(ids)])!r} as token {max(ids)}, but the model has "
            f"{vocabulary} tokens; give it the tokenizer it was trained with"
        )
    return [int(i) for i in ids]


def rendered(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
    """Return the text that the model continues: the chat and the beginning of the assistant's turn.

    If the last message is the assistant's, the text ends with that message and its turn stays open. Raises InputError
    with the template's own reason if it refuses the messages.
    """
    if messages[-1]["role"] != "assistant":
        return _applied(tokenizer, messages, options, add_generation_prompt=True)
    said = str(messages[-1]["content"])
    before = _before_continuation(tokenizer, messages, options, said)
    if len(messages) == 1:
        if before is None:
            raise InputError("the prompt consists of an assistant message only; put a user message before it")
        return before + said
    opened = _applied(tokenizer, messages[:-1], options, add_generation_prompt=True)
    if said.lstrip().startswith(THINK):  # the row's own thoughts replace the ones that the template opens
        opened = _WRITTEN_THOUGHTS.sub("", opened)
    shared = opened.rstrip()
    if before is not None and before.startswith(shared):
        # Some templates write more before an assistant message than in their generation prompt. Thoughts are taken from
        # the generation prompt, which follows a thinking switch.
        more = before.removeprefix(shared)
        if THINK not in more and END_OF_THINK not in more:
            return before + said
    return opened + said


def _before_continuation(
    tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any], said: str
) -> str | None:
    """Return the text before a message that is continued; None if the template changes the message's text."""
    try:
        text = _applied(tokenizer, messages, options, continue_final_message=True)
    except InputError:
        return None
    for written in (said, said.strip()):
        if text.endswith(written):
            return text.removesuffix(written)
    return None


def thinks(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any]) -> bool:
    """Whether the template lets the model reason before it answers.

    If the template has a thinking switch, this is whether thinking can still be turned off. Raises InputError as
    `rendered` does.
    """
    text = rendered(tokenizer, messages, options)
    if has_thinking_switch(tokenizer):
        return text != rendered(tokenizer, messages, {**options, "enable_thinking": False})
    return THINK in _source(tokenizer) and not text.rstrip().endswith(END_OF_THINK)


def has_thinking_switch(tokenizer: Any) -> bool:
    return reads(tokenizer, "enable_thinking")


def reads(tokenizer: Any, name: str) -> bool:
    """Whether the chat template contains this name, other than as a tag such as <think>."""
    return re.search(rf"(?<![\w</]){re.escape(name)}(?!\w)", _source(tokenizer)) is not None


def _source(tokenizer: Any) -> str:
    """Return the tokenizer's chat template, or all of its templates concatenated."""
    template = tokenizer.chat_template or ""
    return template if isinstance(template, str) else "\n".join(template.values())


def _applied(tokenizer: Any, messages: Sequence[Message], options: Mapping[str, Any], **how: bool) -> str:
    """Call transformers' ``apply_chat_template``. Raises InputError with the template's reason if it fails."""
    if tokenizer.chat_template is None and "chat_template" not in options:
        raise InputError(
            "the prompt is a list of messages, but the model's tokenizer has no chat template; give it plain text "
            "(without chat and system_prompt), or choose a model that has one"
        )
    chat = [_with_arguments(message) for message in messages]
    blank = [{**message, "content": message["content"] or ""} for message in chat]
    texts: list[str] = []
    reason = ""
    # Some templates distinguish None from text; others print None or null, or fail on it.
    for form in [chat] if chat == blank else [chat, blank]:
        try:
            texts.append(str(tokenizer.apply_chat_template(form, tokenize=False, **how, **options)))
        except Exception as error:  # a template is a program, which may raise anything
            reason = reason or _reason(error)
    if not texts:
        raise InputError(_refusal(messages, reason))
    return min(texts, key=lambda text: text.count("None") + text.count("null"))


def _reason(error: Exception) -> str:
    line = " ".join(str(error).split())[:300] or "no reason given"
    return line if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: {line}"


def _refusal(messages: Sequence[Message], reason: str) -> str:
    roles = [str(message["role"]) for message in messages]
    shown = ", ".join(roles[:8]) + (", ..." if len(roles) > 8 else "")
    hint = (
        "if it takes no system message, leave system_prompt out and put the text into prompt_template"
        if "system" in roles
        else "change the rows to what it takes, or choose another model"
    )
    return f"the model's chat template refuses the messages (roles {shown}): {reason}; {hint}"


class _Arguments(dict[str, Any]):
    """A tool call's arguments: a dict for templates that serialise it, which becomes JSON text when printed."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)

    def __add__(self, text: str) -> str:
        return str(self) + text

    def __radd__(self, text: str) -> str:
        return text + str(self)


def _with_arguments(message: Message) -> Message:
    """Return the message with its tool calls' arguments as objects, also if the row has them as JSON text."""
    calls = [_with_object(call) for call in message.get("tool_calls", [])]
    return {**message, "tool_calls": calls} if calls else message


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _with_object(function)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # text that is not JSON is passed to the template unchanged
            arguments = json.loads(arguments)
    return {**call, "arguments": _Arguments(arguments)} if isinstance(arguments, dict) else call
