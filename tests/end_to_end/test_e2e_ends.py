"""Where completions end: in the doctor's lines, refusals, samples and pass@1."""

from __future__ import annotations

import json
import shutil

import pytest
from cli_process import CommandLine, tiny_run
from transformers import AutoTokenizer

from pacedrl.assets import TINY_MODEL

ROWS = [{"prompt": f"copy:{i}=", "answer": str(i)} for i in range(10, 18)]


def chat_model(cli: CommandLine, template: str, eos: str | None = "<eos>") -> str:
    """The tiny model with a chat template, and perhaps without an end token."""
    folder = cli.folder / "chat"
    shutil.copytree(TINY_MODEL, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.eos_token = template, eos
    tokenizer.save_pretrained(folder)
    for path in (folder / "config.json", folder / "generation_config.json"):
        settings = json.loads(path.read_text()) | ({} if eos else {"eos_token_id": None})
        path.write_text(json.dumps(settings))
    return "chat"


def examine(cli: CommandLine, *overrides: str) -> tuple[int, str]:
    """Return the doctor's output on eight prompts, sent through the chat template."""
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    task = {"source": "rows.jsonl", "verifier": "exact", "chat": True}
    cli.write("c.yaml", tiny_run(data={"train": [task], "eval": []}))
    result = cli("doctor", "c.yaml", "model.name=chat", *overrides)
    assert "Traceback" not in result.err
    return result.code, result.out


def test_the_doctor_says_where_completions_end(cli: CommandLine) -> None:
    chat_model(cli, "{% for m in messages %}{{ m.content }}<bos>{% endfor %}")
    code, out = examine(cli, "sampling.stop=[xy, <pad>]")
    ends = "'<pad>', '<bos>' (the chat template's end of turn), '<eos>', 'xy', or after 12 tokens"
    assert f"ok  completions end at {ends}" in out
    assert code == 0


def test_the_doctor_warns_of_a_template_that_ends_no_turn(cli: CommandLine) -> None:
    chat_model(cli, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    code, out = examine(cli)
    assert "warn  task rows: the chat template writes nothing at the end of the assistant's turn" in out
    assert code == 0


def test_a_model_that_never_ends_is_refused_until_something_does(cli: CommandLine) -> None:
    chat_model(cli, "{{ messages[0].content }}", eos=None)
    said = "neither the model, its tokenizer nor its chat template names a token that ends a completion"
    code, out = examine(cli)
    assert (code, f"fail  model.name: {said}" in out) == (2, True)
    result = cli("train", "c.yaml", "model.name=chat")
    assert (result.code, said in result.err) == (2, True)
    code, out = examine(cli, "sampling.stop='3'")
    assert (code, "completions end at '3', or after 12 tokens" in out) == (0, True)


@pytest.mark.parametrize(
    ("template", "overrides", "right"),
    [("", [], 0.0), ("9", [], 0.5), ("", ["sampling.stop='9'"], 0.5)],
    ids=["nothing but the end token", "the template's end of a turn", "a stop string"],
)
def test_what_follows_the_end_is_not_part_of_the_answer(
    cli: CommandLine, template: str, overrides: list[str], right: float
) -> None:
    """The tiny model copies numbers faithfully; if a 9 ends completions, one of two answers is 12."""
    chat_model(cli, "{% for m in messages %}{{ m.content }}" + template + "{% endfor %}")
    cli.write("rows.jsonl", "".join(json.dumps({"prompt": f"copy:12{i}4=", "answer": "12"}) + "\n" for i in (9, 8)))
    cli.write("c.yaml", tiny_run(data={"eval": [{"source": "rows.jsonl", "verifier": "exact"}]}))
    result = cli("eval", "chat", "--config", "c.yaml", "--k", "1", "--json", "-", "eval.temperature=0", *overrides)
    assert result.code == 0, result.err
    assert json.loads(result.out)["results"][0]["figures"]["pass@1"]["mean"] == right
