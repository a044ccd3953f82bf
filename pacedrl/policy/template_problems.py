"""Finding what a chat template ignores in the prompts, for the doctor."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pacedrl.errors import InputError
from pacedrl.policy.chat_template import has_thinking_switch, reads, rendered, thinks
from pacedrl.tasks.chats import OPTIONS_COLUMN, TOOLS_COLUMN
from pacedrl.tasks.completions import END_OF_THINK
from pacedrl.types import Message, Prompt

ROOM_TO_THINK = 256
"""Fewer new tokens than this rarely suffice for a model that thinks before it answers."""

Options = dict[str, Any]


def template_problems(tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[str]:
    """Yield one line for each kind of problem, which is searched for in the first prompt that could have it."""
    for column in (TOOLS_COLUMN, OPTIONS_COLUMN):
        if any(prompt.columns.get(column) for prompt in prompts if isinstance(prompt.content, str)):
            yield f"the column {column} is for a chat template, but prompts are plain text; to use it, set chat: true"
    chats = [(prompt.content, prompt.template_options) for prompt in prompts if not isinstance(prompt.content, str)]
    if not chats:
        return
    for name in sorted({name for _, options in chats for name in options} - {TOOLS_COLUMN, "chat_template"}):
        if not reads(tokenizer, name):
            yield f"{OPTIONS_COLUMN}: the model's chat template does not use '{name}', so it changes nothing"
    with_tools = next((chat for chat in chats if TOOLS_COLUMN in chat[1]), None)
    if with_tools is not None and _text(tokenizer, *with_tools) == _text(tokenizer, *_without_tools(*with_tools)):
        yield "the model's chat template ignores the tools, so the model does not see them"
    with_calls = next((chat for chat in chats if any("tool_calls" in message for message in chat[0])), None)
    if with_calls is not None and _text(tokenizer, *with_calls) == _text(tokenizer, *_without_calls(*with_calls)):
        yield "the model's chat template ignores tool_calls, so the model does not see them"
    for role in _left_out(tokenizer, *(with_calls or chats[0])):
        yield f"the model's chat template leaves out the text of messages with the role '{role}'"
    last = chats[0][0][-1]
    ended = last["role"] == "assistant" and END_OF_THINK in (last["content"] or "")
    if max_new_tokens < ROOM_TO_THINK and not ended and thinks(tokenizer, *chats[0]):
        off = f", or set {OPTIONS_COLUMN}: {{enable_thinking: false}}" if has_thinking_switch(tokenizer) else ""
        yield (
            f"the model may think before it answers, and sampling.max_new_tokens = {max_new_tokens} leaves little "
            f"room; raise it to {ROOM_TO_THINK} or more{off}"
        )


def _without_tools(messages: Sequence[Message], options: Options) -> tuple[Sequence[Message], Options]:
    return messages, {name: value for name, value in options.items() if name != TOOLS_COLUMN}


def _without_calls(messages: Sequence[Message], options: Options) -> tuple[Sequence[Message], Options]:
    return [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages], options


def _left_out(tokenizer: Any, messages: Sequence[Message], options: Options) -> list[str]:
    """Return the roles whose text is missing, except the assistant's, whose thoughts templates drop on purpose."""
    text = _text(tokenizer, messages, options) or ""

    def is_there(said: str) -> bool:
        return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text

    missing = [
        message["role"]
        for message in messages
        if message["role"] != "assistant" and message["content"] and not is_there(message["content"].strip())
    ]
    return list(dict.fromkeys(missing))


def _text(tokenizer: Any, messages: Sequence[Message], options: Options) -> str | None:
    """Render the messages; None if the template refuses them."""
    try:
        return rendered(tokenizer, messages, options)
    except InputError:
        return None
