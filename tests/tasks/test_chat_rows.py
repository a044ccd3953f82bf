"""Rows that pass the chat template more than text: tool calls, tools and template variables."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import load_task

USER = {"role": "user", "content": "2 + 2?"}


def schema(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


SCHEMA = schema("times", a={"type": "integer"})
CALL = {"type": "function", "function": {"name": "times", "arguments": {"a": 2}}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "times", "tool_call_id": "1", "content": "4"}


def load(path, **options):
    return load_task(TaskConfig(source=str(path), verifier="exact", **options)).prompts


def refusal(path, **options):
    with pytest.raises(InputError) as refused:
        load(path, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_keys_of_rows_without_options_are_what_they_were(rows_file):
    # A checkpoint names its prompts by them: these were computed before rows could have options.
    system = {"role": "system", "content": "Add."}
    rows = [{"prompt": "2 + 2?", "answer": "4"}, {"prompt": [system, USER], "answer": 4, "tools": []}]
    assert [prompt.key for prompt in load(rows_file(*rows))] == ["0958482cce40dfb9", "d88c999abdf669e1"]


def test_rows_that_differ_in_their_options_are_different_prompts(rows_file):
    options = [{}, {"chat_template_kwargs": {"enable_thinking": False}}, {"tools": [SCHEMA]}, {"tools": []}]
    prompts = load(rows_file(*({"prompt": [USER], "answer": "4", **each} for each in options)))
    assert [prompt.template_options for prompt in prompts] == [{}, {"enable_thinking": False}, {"tools": [SCHEMA]}]
    assert len({prompt.key for prompt in prompts}) == 3


@pytest.mark.parametrize("blank", [{"content": ""}, {"content": None}, {}, {"content": "", "tool_calls": []}])
def test_an_empty_message_where_the_answer_would_stand_begins_nothing(rows_file, blank):
    rows = [{"prompt": [USER, {"role": "assistant", **blank}], "answer": 4}, {"prompt": [USER], "answer": 4}]
    (prompt,) = load(rows_file(*rows))
    assert prompt.content == [USER]


@pytest.mark.parametrize("tools", [[SCHEMA], json.dumps([SCHEMA]), [json.dumps(SCHEMA)]])
def test_tools_may_be_objects_or_json_text(rows_file, tools):
    (prompt,) = load(rows_file({"prompt": [USER], "answer": "4", "tools": tools}))
    assert prompt.template_options == {"tools": [SCHEMA]}
    assert prompt.columns["tools"] == tools  # as in TRL, a reward function sees the column itself


def test_a_rows_options_override_the_tasks(rows_file):
    rows = [{"prompt": "a", "answer": "4"}, {"prompt": "b", "answer": "4", "chat_template_kwargs": {"x": 2}}]
    prompts = load(rows_file(*rows), chat=True, chat_template_kwargs={"x": 1, "y": 1})
    assert [prompt.template_options for prompt in prompts] == [{"x": 1, "y": 1}, {"x": 2, "y": 1}]


def test_what_arrow_fills_into_options_leaves_the_tasks_alone(tmp_path):
    rows = [{"prompt": "a", "answer": "4", "chat_template_kwargs": {"x": 2}}, {"prompt": "b", "answer": "4"}]
    rows[1]["chat_template_kwargs"] = {"y": 3}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    prompts = load(tmp_path / "rows.parquet", chat=True, chat_template_kwargs={"x": 1})
    assert [prompt.template_options for prompt in prompts] == [{"x": 2}, {"x": 1, "y": 3}]


def test_options_in_csv_are_json_text(write):
    path = write("rows.csv", 'prompt,answer,chat_template_kwargs\na,1,"{""enable_thinking"": false}"\nb,2,\n')
    prompts = load(path, chat=True)
    assert [prompt.template_options for prompt in prompts] == [{"enable_thinking": False}, {}]


def test_messages_are_kept_whole_and_without_what_arrow_fills_in(tmp_path, rows_file):
    chat = [USER, CALLED, RESULT, {"role": "user", "content": "So?", "name": "ann"}]
    tools = [SCHEMA, schema("root", of={"type": "number"})]
    row = {"prompt": chat, "answer": "4", "tools": tools}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    (filled,) = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert filled["prompt"][0]["tool_calls"] is None  # what Arrow makes of a message without calls
    assert filled["tools"][0]["function"]["parameters"]["properties"]["of"] is None
    for path in (rows_file(row), tmp_path / "rows.parquet"):
        (prompt,) = load(path)
        assert (prompt.content, prompt.template_options, prompt.question) == (chat, {"tools": tools}, "So?")


def test_tool_calls_without_content_and_empty_tool_results_are_kept(rows_file):
    for calls in ([CALL], json.dumps([CALL])):
        called = {"role": "assistant", "tool_calls": calls}
        (prompt,) = load(rows_file({"prompt": [USER, called, {**RESULT, "content": ""}], "answer": "4"}))
        assert prompt.content[1:] == [CALLED, {**RESULT, "content": ""}]
        assert prompt.question == "2 + 2?"


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        (
            {"prompt": [USER], "tools": ["hammer"]},
            {},
            "column 'tools' holds \"['hammer']\"; expected a list of JSON sch",
        ),
        ({"prompt": [USER], "tools": {"name": "times"}}, {}, "column 'tools' holds"),
        ({"prompt": [USER], "chat_template_kwargs": "thinking"}, {}, "column 'chat_template_kwargs' holds 'thinking'"),
        ({"prompt": [USER], "chat_template_kwargs": [1]}, {}, "expected an object such as"),
        ({"prompt": [USER], "chat_template_kwargs": {"tokenize": True}}, {}, "'tokenize' is set by pacedrl itself"),
        ({"prompt": [USER]}, {"chat_template_kwargs": {"messages": []}}, "'messages' is set by pacedrl itself"),
        ({"prompt": "2 + 2?"}, {"chat_template_kwargs": {"x": 1}}, "this one is plain text; set chat: true"),
        (
            {"prompt": [USER, CALLED]},
            {},
            "(column 'prompt') ends with a tool call, which is not for the model to answer",
        ),
        ({"prompt": [USER, {**CALLED, "tool_calls": "times"}, RESULT]}, {}, "(or tool_calls, a list of objects)"),
        ({"prompt": [{"role": "user", "content": None}]}, {}, "expected chat messages with a role and non-empty text"),
        ({"prompt": [{"role": "assistant", "content": ""}]}, {}, "non-empty text as content"),
        ({"prompt": [USER, {"role": "assistant", "content": ""}, USER]}, {}, "non-empty text as content"),
        ({"prompt": [USER, {"content": "4"}]}, {}, "expected chat messages with a role"),
    ],
)
def test_refusals_name_row_and_column(rows_file, row, options, said):
    path = rows_file({**row, "answer": "4"})
    message = refusal(path, **options)
    assert message.startswith(f"{path}: line 1: ")
    assert said in message
