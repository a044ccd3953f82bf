"""What the model sees of a chat, with templates written in the ways that models' authors write them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pacedrl.errors import InputError
from pacedrl.policy.chat_template import prompt_ids, token_ids
from pacedrl.policy.policy import Policy
from pacedrl.policy.template_problems import template_problems
from pacedrl.types import Prompt

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
TRIMS = PLAIN.replace("m['content']", "m['content'] | trim")
NO_SPACE_IN_PROMPT = (
    "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_GENERATION_PROMPT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)
OPENS_THOUGHTS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)
NOT_THINKING = "<think>\n\n</think>\n\n"
SWITCH = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last %}" + NOT_THINKING + "{% endif %}{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}" + NOT_THINKING + "{% endif %}{% endif %}"
)
SWITCH_OPENS = SWITCH.replace("{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}")
OFF_BY_DEFAULT = PLAIN + "{% if enable_thinking %}<think>{% endif %}"
CHANNEL = PLAIN.replace("{{ m['content'] }}", "{% if m['role'] == 'assistant' %}final: {% endif %}{{ m['content'] }}")
USER, SYSTEM = {"role": "user", "content": "2 + 2?"}, {"role": "system", "content": "Add."}


@pytest.fixture
def tokenizer(tiny: Policy) -> Any:
    return copy.deepcopy(tiny.tokenizer)


def seen(tokenizer: Any, template: str | None, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer.chat_template = template
    return str(tokenizer.decode(token_ids(tokenizer, messages, options)))


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("template", "prefill", "end"),
    [
        (PLAIN, "Let me think.\n<think>", "<assistant>Let me think.\n<think>"),
        (PLAIN, "Step 1:\n", "<assistant>Step 1:\n"),  # white space at the end stays
        (PLAIN, "2 + 2?", "<assistant>2 + 2?"),  # the user's own words
        (PLAIN, "<assistant>", "<assistant><assistant>"),
        (TRIMS, "  Step 1:\n", "<assistant>  Step 1:\n"),
        (NO_SPACE_IN_PROMPT, "So", "<assistant>\nSo"),
        (NO_GENERATION_PROMPT, "So", "[/INST] So"),
        (NO_GENERATION_PROMPT, "So\n", "[/INST] So\n"),
        (OPENS_THOUGHTS, "<think>\nI add.", "<assistant><think>\nI add."),
        (OPENS_THOUGHTS, "<think>I add.", "<assistant><think>I add."),
        (OPENS_THOUGHTS, "<think>\nI add.\n</think>\nIt is", "<assistant><think>\nI add.\n</think>\nIt is"),
        (OPENS_THOUGHTS, "I add.", "<assistant><think>\nI add."),
        (SWITCH, "<think>\nI add.", "<assistant><think>\nI add."),
        (SWITCH, "It is", "<assistant>It is"),
        (SWITCH_OPENS, "It is", "<assistant><think>\nIt is"),
        (SWITCH_OPENS, "<think>\nI add.", "<assistant><think>\nI add."),
        (CHANNEL, "It is", "<assistant>final: It is"),
    ],
)
def test_a_last_message_of_the_assistants_is_continued(tokenizer: Any, template: str, prefill: str, end: str) -> None:
    text = seen(tokenizer, template, [USER, said(prefill)])
    assert text.endswith(end), text
    assert text.count(prefill.strip()) == 1 + (prefill in ("2 + 2?", "<assistant>"))
    assert text.count("2 + 2?") == 1 + (prefill == "2 + 2?")


def test_a_prefill_begins_after_what_the_thinking_switch_writes(tokenizer: Any) -> None:
    text = seen(tokenizer, SWITCH, [USER, said("It is")], enable_thinking=False)
    assert text.endswith("<assistant><think>\n\n</think>\n\nIt is")
    text = seen(tokenizer, SWITCH, [USER, said("<think>\nI add.")], enable_thinking=False)
    assert text.endswith("<assistant><think>\nI add.")


def test_a_prefill_alone_and_earlier_assistant_messages(tokenizer: Any) -> None:
    assert seen(tokenizer, PLAIN, [said("Once")]) == "<assistant>Once"
    history = [USER, said("4"), {"role": "user", "content": "and 3?"}]
    assert seen(tokenizer, PLAIN, history).endswith("<assistant>4</s>\n<user>and 3?</s>\n<assistant>")


def test_thinking_is_switched_by_a_variable_of_the_template(tokenizer: Any) -> None:
    assert seen(tokenizer, SWITCH, [USER]).endswith("<assistant>")
    assert seen(tokenizer, SWITCH, [USER], enable_thinking=False).endswith("<assistant><think>\n\n</think>\n\n")


REFUSING = [
    (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}x",
        [SYSTEM, USER],
        r"refuses the messages \(roles system, user\): No system here; if it takes no system message, leave system_pr",
    ),
    (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}x",
        [USER, USER],
        r"\(roles user, user\): Roles must alternate; change the rows",
    ),
    ("{{ messages[0].name.first }}", [USER], "UndefinedError: .*name"),
    ("{{ messages[0].content + 1 }}", [USER], "TypeError: "),
    ("{% for m in messages %}", [USER], "TemplateSyntaxError: "),
    ("{{ 1 // 0 }}", [USER], "ZeroDivisionError: "),
    ("{# nothing #}", [USER], "the chat template's output for the prompt has no tokens"),
    (None, [USER], "no chat template"),
]


@pytest.mark.parametrize(("template", "messages", "reason"), REFUSING)
def test_a_refusal_has_the_templates_reason_the_task_and_the_row(
    tokenizer: Any, template: str | None, messages: list[dict[str, Any]], reason: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"^task sums: sums.jsonl: line 7: .*{reason}") as refused:
        prompt_ids(tokenizer, Prompt("k", "sums", messages, "4", row="sums.jsonl: line 7"))
    assert "\n" not in str(refused.value)


# Tools

TOOLS = [{"type": "function", "function": {"name": "times", "parameters": {"type": "object"}}}]
CALLS = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string }}"
    "{% for c in m.tool_calls or [] %}<call>ARGUMENTS</call>{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SERIALISES = CALLS.replace("ARGUMENTS", "{{ c.function.name }}{{ c.function.arguments | tojson }}")
PRINTS = CALLS.replace("ARGUMENTS", "{{ c.function.name }}{{ c.function.arguments }}")
JOINS = CALLS.replace("ARGUMENTS", "{{ c.function.name + c.function.arguments + '' }}")
ITERATES = CALLS.replace(
    "ARGUMENTS",
    "{{ c.function.name }}{ {%- for k, v in c.function.arguments | items %}"
    '"{{ k }}": {{ v }}{{ ", " if not loop.last }}{% endfor -%} }',
)
TELLS_BY_NONE = (
    "{% for m in messages %}{% if m.content is none %}<call>{{ m.tool_calls[0].function.name }}</call>"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}<assistant>"
)


def history(arguments: Any, **content: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "times", "arguments": arguments}}
    called = {"role": "assistant", "content": None, **content, "tool_calls": [call]}
    return [USER, called, {"role": "tool", "name": "times", "content": "14"}]


@pytest.mark.parametrize("arguments", [{"a": 2, "b": 7}, '{"a": 2, "b": 7}'], ids=["object", "text"])
@pytest.mark.parametrize("template", [SERIALISES, PRINTS, JOINS, ITERATES])
def test_tool_calls_are_read_by_templates_of_each_kind(tokenizer: Any, template: str, arguments: Any) -> None:
    text = seen(tokenizer, template, history(arguments))
    assert '<assistant><call>times{"a": 2, "b": 7}</call></s>\n<tool>14</s>\n<assistant>' in text
    text = seen(tokenizer, template, history(arguments, content="I multiply."), tools=TOOLS)
    assert '<assistant>I multiply.<call>times{"a": 2, "b": 7}</call></s>' in text
    assert text.startswith('<tools>{"type": "function", "function": {"name": "times", "parameters"')


@pytest.mark.parametrize("template", [PLAIN, PLAIN.replace("m['content']", "'' + m['content']")])
def test_a_message_without_text_is_not_the_word_none(tokenizer: Any, template: str) -> None:
    assert "<assistant></s>\n<tool>14" in seen(tokenizer, template, history({}))


def test_a_template_may_tell_a_call_by_a_content_of_none(tokenizer: Any) -> None:
    assert seen(tokenizer, TELLS_BY_NONE, history({})) == "<user>2 + 2?<call>times</call><tool>14<assistant>"


# What the doctor finds


def problems(tokenizer: Any, template: str, *prompts: Prompt, max_new_tokens: int = 1024) -> str:
    tokenizer.chat_template = template
    return " | ".join(template_problems(tokenizer, prompts, max_new_tokens))


def chat(messages: Any, **options: Any) -> Prompt:
    return Prompt("k", "t", messages, "4", {}, options)


def test_what_a_template_ignores_is_named(tokenizer: Any) -> None:
    assert problems(tokenizer, SERIALISES, chat(history({"a": 1}), tools=TOOLS)) == ""
    assert "ignores the tools" in problems(tokenizer, PLAIN, chat([USER], tools=TOOLS))
    assert "ignores tool_calls" in problems(tokenizer, PLAIN, chat(history({"a": 1})))
    assert "does not use 'think'" in problems(tokenizer, SWITCH, chat([USER], think=False))
    only_users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    assert "leaves out the text of messages with the role 'system'" in problems(
        tokenizer, only_users, chat([SYSTEM, USER])
    )
    text = Prompt("k", "t", "2 + 2?", "4", {"tools": TOOLS})
    assert "the column tools is for a chat template, but prompts are plain text" in problems(tokenizer, PLAIN, text)


@pytest.mark.parametrize(
    ("template", "prompt", "tokens", "warns"),
    [
        (SWITCH, chat([USER]), 16, True),
        (SWITCH, chat([USER]), 256, False),
        (SWITCH, chat([USER], enable_thinking=True), 16, True),
        (SWITCH, chat([USER], enable_thinking=False), 16, False),
        (SWITCH, chat([USER, said("<think>\nI add.\n</think>\nIt is")]), 16, False),
        (OPENS_THOUGHTS, chat([USER]), 16, True),
        (SWITCH_OPENS, chat([USER]), 16, True),
        (OFF_BY_DEFAULT, chat([USER]), 16, False),
        (OFF_BY_DEFAULT, chat([USER], enable_thinking=True), 16, True),
        (PLAIN, chat([USER]), 16, False),
        (SWITCH, Prompt("k", "t", "2 + 2?", "4"), 16, False),
    ],
)
def test_too_few_tokens_for_thoughts(tokenizer: Any, template: str, prompt: Prompt, tokens: int, warns: bool) -> None:
    found = problems(tokenizer, template, prompt, max_new_tokens=tokens)
    assert (f"sampling.max_new_tokens = {tokens} leaves little room" in found) == warns
    assert ("enable_thinking: false" in found) == (warns and template is not OPENS_THOUGHTS)
