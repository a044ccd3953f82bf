"""Chat templates: what doctor shows, and what each command says if a template refuses messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_process import CommandLine, Result, tiny_run
from transformers import AutoTokenizer

from pacedrl.assets import TINY_MODEL

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system messages') }}{% endif %}" + PLAIN
THINKS = TURNS + (
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
TOOLS = "{% for tool in tools or [] %}<tool {{ tool.function.name }}>{% endfor %}" + PLAIN
SYSTEM = "Answer in digits."


def model(cli: CommandLine, template: str) -> str:
    """The tiny model with a chat template; its name."""
    folder = cli.folder / "model"
    folder.mkdir(exist_ok=True)
    for path in TINY_MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return "model"


def run_of(cli: CommandLine, template: str, rows: list[dict[str, Any]], **task: Any) -> None:
    """A configuration c.yaml of these rows on that model."""
    cli.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"source": "rows.jsonl", "verifier": "numeric", **task}]
    tree = tiny_run(
        run={"steps": 1},
        model={"name": model(cli, template)},
        data={"train": tasks, "eval": tasks},
        sampling={"max_prompt_tokens": 200},
        eval={"samples": 1, "k": [1]},
    )
    cli.write("c.yaml", tree)


def texts(*prompts: str) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "answer": "4"} for prompt in prompts]


def one_line(result: Result) -> str:
    assert result.code == 2, result.out + result.err
    (line,) = result.err.splitlines()
    return line


FOUR = [f"{a} + {4 - a}" for a in range(4)]


def test_a_template_that_refuses_is_one_line_in_every_command(cli: CommandLine) -> None:
    run_of(cli, REFUSES_SYSTEM, texts(*FOUR), system_prompt=SYSTEM)
    reason = (
        "task rows: rows.jsonl: line 1: the model's chat template refuses the messages (roles system, user): No system "
        "messages; if it takes no system message, leave system_prompt out and put the text into prompt_template"
    )
    assert one_line(cli("train", "c.yaml")) == f"pacedrl: {reason}"
    assert one_line(cli("eval", "model", "--config", "c.yaml")) == f"pacedrl: {reason}"
    doctor = cli("doctor", "c.yaml")
    assert (doctor.code, doctor.err) == (2, "")
    assert f"fail  {reason}\n1 problem found." in doctor.out
    assert not (cli.folder / "run").exists()
    users = [{"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "answer": "4"}]
    alternate = "{% if messages[1].role == 'user' %}{{ raise_exception('Roles must alternate') }}{% endif %}" + PLAIN
    run_of(cli, alternate, users)
    reason = "(roles user, user): Roles must alternate; change the rows to what it takes"
    init = cli("init", "i.yaml", "--model", "model", "--data", "rows.jsonl", "--reward", "numeric")
    for result in (init, cli("train", "c.yaml")):
        assert reason in one_line(result)
        assert "rows.jsonl: line 1" in result.err
    assert not (cli.folder / "i.yaml").exists()


def test_init_asks_the_template_before_it_writes_a_system_message(cli: CommandLine) -> None:
    run_of(cli, REFUSES_SYSTEM, [])
    cli.write("rows.jsonl", "".join(f'{{"problem": "What is {a} / 7?", "answer": "{a}/7"}}\n' for a in range(10, 50)))
    result = cli("init", "i.yaml", "--model", "model", "--data", "rows.jsonl", "--reward", "math")
    assert result.code == 0, result.err
    written = (cli.folder / "i.yaml").read_text()
    assert "system_prompt" not in written
    doctor = cli("doctor", "i.yaml", "sampling.prompts_per_step=4")
    assert doctor.code == 0, doctor.out
    assert (
        "'<user>What is 18 / 7?\\n\\nThink step by step, and put the final answer in \\\\boxed{}.</s><assistant>'"
        in doctor.out
    )


def test_doctor_shows_a_prefill_and_the_reward_sees_the_new_text_alone(cli: CommandLine) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": text}, {"role": "assistant", "content": "It is"}], "answer": "4"}
        for text in FOUR
    ]
    spy = (
        "import json\n"
        "def spy(prompts, completions, answer):\n"
        "    open('seen.jsonl', 'a').write(json.dumps([prompts[0], completions[0]]) + '\\n')\n"
        "    return [0.5]\n"
    )
    cli.write("spy.py", spy)
    run_of(cli, PLAIN, rows, verifier="spy.py:spy")
    result = cli("doctor", "c.yaml", "verifier.check_gold=false")
    assert result.code == 0, result.out
    shown = "(chat template, continuing the assistant's message) '<user>0 + 4</s><assistant>It is'"
    assert shown in result.out
    assert "gold answers were not tried, because verifier.check_gold is false" in result.out
    (cli.folder / "seen.jsonl").unlink()
    assert cli("train", "c.yaml", "verifier.check_gold=false").code == 0
    for prompt, completion in cli.rows("seen.jsonl"):
        assert prompt[-1] == {"role": "assistant", "content": "It is"}
        (said,) = completion
        assert said["role"] == "assistant"
        assert not said["content"].startswith("It is")
    sampled = [row["prompt"][-1]["content"] for row in cli.rows("run/samples.jsonl")]
    assert set(sampled) == {"It is"}


def test_the_thinking_switch_reaches_the_template_from_task_and_row(cli: CommandLine) -> None:
    run_of(cli, THINKS, texts(*FOUR), chat=True)
    doctor = cli("doctor", "c.yaml")
    assert "'<user>0 + 4</s><assistant>'" in doctor.out
    assert "warn  task rows: the model may think before it answers" in doctor.out
    off = "data.train.chat_template_kwargs={enable_thinking: false}"
    doctor = cli("doctor", "c.yaml", off, "data.eval=[]")
    assert "'<user>0 + 4</s><assistant><think></think>'" in doctor.out
    assert "may think" not in doctor.out
    assert cli("train", "c.yaml", off).code == 0
    rows = [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in texts(*FOUR)]
    run_of(cli, THINKS, rows, chat=True, chat_template_kwargs={"enable_thinking": True, "thinkin": 1})
    doctor = cli("doctor", "c.yaml")
    assert "'<user>0 + 4</s><assistant><think></think>'" in doctor.out
    assert "warn  task rows: chat_template_kwargs: the model's chat template does not use 'thinkin'" in doctor.out
    wrong = cli("doctor", "c.yaml", "data.train.chat_template_kwargs=[1]")
    assert "data.train.0.chat_template_kwargs: " in one_line(wrong)


@pytest.mark.parametrize(("template", "ignores"), [(TOOLS, False), (PLAIN, True)])
def test_tools_reach_the_template_or_doctor_warns(cli: CommandLine, template: str, ignores: bool) -> None:
    tool = {"type": "function", "function": {"name": "times", "parameters": {"type": "object"}}}
    rows = [{"prompt": [{"role": "user", "content": text}], "tools": [tool], "answer": "4"} for text in FOUR]
    run_of(cli, template, rows)
    doctor = cli("doctor", "c.yaml")
    assert doctor.code == 0, doctor.out
    assert ("'<tool times><user>0 + 4</s><assistant>'" in doctor.out) == (not ignores)
    assert ("warn  task rows: the model's chat template ignores the tools" in doctor.out) == ignores


def test_a_folder_and_its_split_through_init_and_train(cli: CommandLine) -> None:
    folder = cli.folder / "digits"
    folder.mkdir()
    for split, numbers in (("train", range(100, 140)), ("test", range(200, 204))):
        lines = (json.dumps({"prompt": f"reverse:{n}=", "answer": str(n)[::-1]}) + "\n" for n in numbers)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    cli.environment["HF_DATASETS_CACHE"] = str(cli.folder / "cache")
    assert cli("init", "i.yaml", "--data", "digits", "--reward", "exact").code == 0
    assert "the dataset's own split 'test'" in (cli.folder / "i.yaml").read_text()
    smaller = ["run.steps=1", "eval.samples=2", "eval.k=[1]", "verifier.workers=1"]
    result = cli("train", "i.yaml", *smaller)
    assert result.code == 0, result.err
    figures = json.loads(Path(cli.folder / "runs/i/eval.jsonl").read_text().splitlines()[-1])
    assert "digits/pass@1" in figures
