"""`pacedrl init`: the configuration it writes for various data, which trains without changes."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from pacedrl.assets import TINY_MODEL
from pacedrl.cli import main
from pacedrl.config import Config, load_config
from pacedrl.init.template import Setting, Suggestion, yaml_text
from pacedrl.tasks.datasets import load_task
from pacedrl.training.trainer import Trainer

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACEDRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(TINY_MODEL, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


def jsonl(rows: Iterable[Any], name: str = "rows.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def digits(number: int) -> tuple[str, str]:
    return f"reverse:{number}=", str(number)[::-1]


ROWS = [dict(zip(("question", "answer"), digits(n), strict=True)) for n in range(1001, 1041)]


def written(*arguments: str) -> Config:
    """The configuration that a successful init writes."""
    assert main(["init", "c.yaml", "--force", *arguments]) == 0
    return load_config(Path("c.yaml"))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one-line message with which init refuses, without writing anything."""
    before = sorted(path.name for path in Path().iterdir())
    assert main(["init", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert sorted(path.name for path in Path().iterdir()) == before
    return line


def _csv_file() -> list[str]:
    with open("table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["Problem", "Result"])
        writer.writeheader()
        writer.writerows({"Problem": row["question"], "Result": row["answer"]} for row in ROWS)
    return ["--data", "table.csv"]


def _verl_file() -> list[str]:
    chats = ([{"role": "user", "content": row["question"]}] for row in ROWS)
    golds = ({"style": "rule", "ground_truth": row["answer"]} for row in ROWS)
    rows = ({"data_source": "mine", "prompt": c, "reward_model": g} for c, g in zip(chats, golds, strict=True))
    return ["--data", jsonl(rows, "verl.jsonl")]


def _trl_file() -> list[str]:
    rows = ({"prompt": [{"role": "user", "content": row["question"]}], "solution": row["answer"]} for row in ROWS)
    return ["--data", jsonl(rows, "trl.jsonl")]


def _own_reward() -> list[str]:
    return ["--data", jsonl(ROWS, "own.jsonl"), "--reward", "mine.py:score_it"]


# Arguments, the expected verifier, and the expected number of training prompts.
PLAIN: list[tuple[Callable[[], list[str]], str, int]] = [
    (lambda: ["--data", jsonl(ROWS)], "exact", 32),
    (_csv_file, "exact", 32),
    (_own_reward, "mine.py:score_it", 32),
    (list, "exact", 2000),
    (lambda: ["--data", "gym:chain_sum"], "gym", 1974),
]
CHATS: list[tuple[Callable[[], list[str]], str, int]] = [(_verl_file, "exact", 32), (_trl_file, "exact", 32)]


@pytest.mark.parametrize("chats", [False, True])
def test_the_configuration_passes_the_doctor_and_trains(
    chats: bool, chat_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trees = []
    for arguments, verifier, prompts in CHATS if chats else PLAIN:
        config = written(*arguments(), "--model", chat_model if chats else "tiny")
        out = capsys.readouterr().out
        for command in ("pacedrl doctor c.yaml", "pacedrl train c.yaml", "pacedrl report runs/c"):
            assert command in out
        assert f"Wrote c.yaml: {prompts:,} prompts to train on" in out
        assert config.data.train[0].verifier == verifier
        assert isinstance(load_task(config.data.train[0]).prompts[0].content, list) == chats
        trees.append(yaml.safe_load(Path("c.yaml").read_text()))
    # One run trains all of them, to save start-up time; tests/test_first_run.py trains one without changes.
    tree = trees[-1]
    tree["data"] = {part: [{**each["data"][part], "limit": 8} for each in trees] for part in ("train", "eval")}
    tree["sampling"] |= {"max_new_tokens": 8, "prompts_per_step": len(trees)}
    tree["eval"] |= {"samples": 2, "k": [1, 2]}
    tree["run"] |= {"steps": 1}
    Path("all.yaml").write_text(yaml.safe_dump(tree))
    assert main(["doctor", "all.yaml", "verifier.workers=1"]) == 0
    assert "Ready to train" in capsys.readouterr().out
    summary = Trainer(load_config(Path("all.yaml"), ["verifier.workers=1"])).train()
    assert (summary.step, summary.rollouts) == (1, 8 * len(trees))
    assert len(summary.evals) == 2


def test_held_out_rows_are_not_trained_on() -> None:
    config = written("--data", jsonl(ROWS))
    train, held_out = (load_task(task).prompts for task in (config.data.train[0], config.data.eval[0]))
    assert [prompt.content for prompt in held_out] == [row["question"] for row in ROWS[:8]]
    assert [prompt.content for prompt in train] == [row["question"] for row in ROWS[8:]]


def test_a_warning_counts_held_out_rows_that_are_also_training_rows(capsys: pytest.CaptureFixture[str]) -> None:
    written("--data", jsonl([*ROWS, *ROWS[:3]]))
    assert "Careful: 3 held-out prompts are also training prompts" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["skills", "gym:chain_sum"])
def test_generated_rows_do_not_overlap(source: str) -> None:
    config = written("--data", source)
    train, held_out = (load_task(task).prompts for task in (config.data.train[0], config.data.eval[0]))
    keys = {prompt.key for prompt in train}
    shared = [prompt.content for prompt in held_out if prompt.key in keys]
    assert len(held_out) == 100
    # Sums of a few small terms repeat by chance, but rarely.
    assert len(shared) <= 2, shared


def test_a_separate_evaluation_file_with_other_columns() -> None:
    held_out = jsonl(({"input": row["question"], "answer": row["answer"]} for row in ROWS[:5]), "held.jsonl")
    config = written("--data", jsonl(ROWS), "--eval", held_out)
    (task,) = config.data.eval
    assert (task.source, task.columns, task.limit) == ("held.jsonl", {"prompt": "input"}, None)
    assert config.data.train[0].skip == 0
    assert len(load_task(config.data.train[0]).prompts) == 40


def test_with_few_rows_none_are_held_out() -> None:
    config = written("--data", jsonl(ROWS[:4]))
    assert config.data.eval == []
    assert config.sampling.prompts_per_step == 1


def test_compressed_files_and_named_columns() -> None:
    with gzip.open("rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"a": q, "b": a}) + "\n" for q, a in map(digits, range(1001, 1041)))
    config = written("--data", "rows.jsonl.gz", "--prompt-column", "a", "--answer-column", "b")
    assert config.data.train[0].columns == config.data.eval[0].columns == {"prompt": "a", "answer": "b"}


def test_plain_rows_for_a_chat_model_are_sent_as_messages(chat_model: str) -> None:
    config = written("--data", jsonl(ROWS), "--model", chat_model)
    (task,) = config.data.train
    assert task.chat
    (system, user) = load_task(task).prompts[0].content
    assert (system["role"], user) == ("system", {"role": "user", "content": ROWS[8]["question"]})
    assert (config.sampling.max_prompt_tokens, config.sampling.max_new_tokens) == (496, 16)  # of a context of 512


def test_rows_with_instructions_get_no_system_prompt(chat_model: str) -> None:
    rows = [{"prompt": f"What is {n} + 1? Use \\boxed{{}}.", "answer": f"\\frac{{{n}}}{{7}}"} for n in range(1, 30)]
    config = written("--data", jsonl(rows), "--model", chat_model)
    assert (config.data.train[0].verifier, config.data.train[0].system_prompt) == ("math", None)
    rows = [{**row, "prompt": "What is it?" + str(n)} for n, row in enumerate(rows)]
    config = written("--data", jsonl(rows), "--model", chat_model)
    assert "\\boxed{}" in (config.data.train[0].system_prompt or "")


def test_a_model_that_is_not_local_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked: list[Any] = []
    monkeypatch.setattr("socket.socket.connect", lambda *arguments: asked.append(arguments))
    config = written("--data", jsonl(ROWS), "--model", "nobody/has-this-model")
    assert asked == []
    assert config.model.name == "nobody/has-this-model"
    assert not config.data.train[0].chat
    said = Path("c.yaml").read_text()
    assert "# chat: true" in said
    assert "not on this machine" in said
    assert config.sampling.prompts_per_step == 8  # 32 prompts, at least four per prompt of a step


@pytest.mark.parametrize("installed", [True, False])
def test_vllm_samples_where_it_and_a_gpu_are_present(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr("pacedrl.policy.vllm.installed", lambda: installed)
    model = ("--data", jsonl(ROWS), "--model", "nobody/has-this-model")
    assert written(*model).sampling.engine == "transformers"
    assert "engine" not in Path("c.yaml").read_text()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = written(*model)
    assert config.sampling.engine == ("vllm" if installed else "transformers")
    assert ("# engine: vllm" in Path("c.yaml").read_text()) != installed
    assert ('pip install "pacedrl[vllm]"' in Path("c.yaml").read_text()) != installed
    assert written("--data", "rows.jsonl", "--model", "tiny").sampling.engine == "transformers"


def test_sizes_on_a_gpu_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    rows = [{"question": f"What is {n} - 1?", "answer": n - 1} for n in range(1000)]
    config = written("--data", jsonl(rows), "--model", "nobody/has-this-model")
    assert (config.sampling.prompts_per_step, config.sampling.max_new_tokens) == (128, 1024)
    assert config.optimizer.learning_rate == Config().optimizer.learning_rate
    assert (config.replay.capacity, config.replay.admit) == (128, 64)
    assert config.data.train[0].verifier == "numeric"


def test_the_prompt_limit_covers_training_and_held_out_prompts() -> None:
    long = [{"question": f"copy:{'1' * 90}{n}=", "answer": "0" * 30} for n in range(10)]
    config = written("--data", jsonl([*ROWS, *long]), "--eval", jsonl([long[0]], "held.jsonl"))
    assert (config.sampling.max_prompt_tokens, config.sampling.max_new_tokens) == (112, 48)
    config = written("--data", jsonl(ROWS), "--eval", "held.jsonl")
    assert config.sampling.max_prompt_tokens == 112


def test_prompts_beyond_the_context_are_dropped_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    long: dict[str, str] = {"question": "copy:" + "1" * 600 + "=", "answer": "1"}
    config = written("--data", jsonl([*ROWS, long]))
    assert config.data.overlong == "drop"
    assert config.sampling.max_prompt_tokens + config.sampling.max_new_tokens <= 512
    capsys.readouterr()
    data = jsonl({**long, "question": long["question"] + str(n)} for n in range(10))
    assert "all 10 prompts are longer than the model's context" in complaint(capsys, "d.yaml", "--data", data)


def test_a_hub_dataset_is_evaluated_on_its_own_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(source: str, split: str, **options: Any) -> list[dict[str, str]]:
        asked.append((source, split, options))
        return ROWS if split == "train" else ROWS[:7]

    hub = SimpleNamespace(load_dataset=load_dataset, get_dataset_split_names=lambda *_: ["train", "test"])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    config = written("--data", "some/dataset", "--subset", "main")
    assert {split for _, split, _ in asked} == {"train", "test"}
    assert all((source, options) == ("some/dataset", {"name": "main"}) for source, _, options in asked)
    assert (config.data.train[0].split, config.data.eval[0].split) == ("train", "test")
    assert config.data.train[0].options == config.data.eval[0].options == {"name": "main"}


@pytest.mark.parametrize("recipe", ["grpo", "lilo", "dapo", "paced_plus", "oracle"])
def test_recipes(recipe: str) -> None:
    config = written("--data", jsonl(ROWS), "--recipe", recipe)
    assert config.recipe == recipe
    replays = recipe in ("paced_plus", "oracle")
    assert config.replay.enabled == replays
    assert ("replay:" in Path("c.yaml").read_text()) == replays


def test_the_written_reward_function_scores_exact_match(capsys: pytest.CaptureFixture[str]) -> None:
    written("--data", jsonl(ROWS), "--reward", "mine.py:score_it")
    assert "edit mine.py" in capsys.readouterr().out
    functions: dict[str, Any] = {}
    exec(Path("mine.py").read_text(), functions)
    chat = [{"role": "assistant", "content": "4"}]
    assert functions["score_it"](prompts=[""] * 3, completions=[" 12\n", "13", chat], answer=["12", 12, 4]) == [1, 0, 1]
    Path("mine.py").write_text("def score_it(completions, **_):\n    return [1.0 for _ in completions]\n")
    written("--data", jsonl(ROWS), "--reward", "mine.py:score_it")  # uses the existing file
    assert "return [1.0 for" in Path("mine.py").read_text()


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (None, ["--data", "rows.jsonl"], "rows.jsonl: no such file"),
        ("", ["--data", "rows.jsonl"], "rows.jsonl: holds no rows"),
        ("[1, 2]\n", ["--data", "rows.jsonl"], "rows.jsonl: line 1: expected an object"),
        ('{"q": "a", "a": "b"}\n', ["--data", "rows.jsonl"], "it has q, a; say which with --prompt-column"),
        ('{"prompt": "a", "a": "b"}\n', ["--data", "rows.jsonl"], "name it with --answer-column, or judge"),
        ('{"prompt": "a", "a": "b"}\n', ["--data", "rows.jsonl"], "(see docs/verifiers.md)"),
        ('{"promt": "a"}\n', ["--data", "rows.jsonl", "--prompt-column", "prompt"], "did you mean 'promt'"),
        ('{"prompt": "a", "x": 1}\n', ["--data", "rows.jsonl", "--reward", "no.py:f"], "there is no no.py"),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--reward", "exakt"], "did you mean 'exact'"),
        (
            '{"prompt": "a", "answer": 1}\n',
            ["--data", "rows.jsonl", "--reward", "no.py:2f"],
            "'2f' is not the name of a function",
        ),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--reward", "no/no.py:f"], "no folder 'no'"),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--model", "./none"], "no folder './none'"),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--model", "folder"], "in the folder 'folder'"),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--eval", "row.jsonl"], "did you mean rows.jsonl"),
        ('{"prompt": "a", "answer": 1}\n', ["--data", "rows.jsonl", "--recipe", "oracle"], "(see docs/recipes.md)"),
        ('{"prompt": "a", "answer": 1}\n{"prompt": "b", "answer": null}\n', ["--data", "rows.jsonl"], "line 2"),
        ('{"prompt": [{"role": "user", "content": "a"}], "answer": 1}\n', ["--data", "rows.jsonl"], "no chat template"),
        ("", ["--recipe", "paced_pluss"], "did you mean 'paced_plus'"),
        ("", ["--data", "gym:chain_sums"], "did you mean chain_sum"),
    ],
)
def test_bad_input(content: str | None, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    if content is not None:
        Path("rows.jsonl").write_text(content)
    assert said in complaint(capsys, "c.yaml", *arguments)


def test_nothing_is_overwritten_without_force(capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("mine")
    assert "c.yaml: exists already" in complaint(capsys, "c.yaml")
    assert Path("c.yaml").read_text() == "mine"
    assert "no folder 'none'" in complaint(capsys, "none/c.yaml")
    assert "such as my.yaml" in complaint(capsys, "rows.jsonl")
    written()
    assert Path("c.yaml").read_text() != "mine"


def test_hostile_names_and_answers_stay_in_their_comments() -> None:
    name = "q\nrun: {dir: elsewhere}\u2028x: #"
    rows = [{name: f"{n}?", "answer": f"a\u0085b\n{n}"} for n in range(20)]
    config = written("--data", jsonl(rows), "--prompt-column", name)
    assert config.run.dir == Path("runs/c")
    assert config.data.train[0].columns["prompt"] == name


def test_yaml_text_reads_back_as_its_settings() -> None:
    tree = {
        "a": {"b": Setting("x: y # z"), "c": Setting([1, 8], "pass@k " * 30), "d": Suggestion({"r": 16}, "an adapter")},
        "e": Setting("two\nlines", "beside"),
        "f": Setting(1e-6),
        "g": {"h": Setting({"prompt": "a.b"}, ""), "i": Setting("no")},
    }
    text = yaml_text(tree)
    assert yaml.safe_load(text) == {
        "a": {"b": "x: y # z", "c": [1, 8]},
        "e": "two\nlines",
        "f": 1e-6,
        "g": {"h": {"prompt": "a.b"}, "i": "no"},
    }
    assert "  # d: {r: 16}" in text
    assert all(len(line) <= 120 for line in text.splitlines())
