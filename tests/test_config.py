"""Configurations: defaults, YAML files, overrides, and writing them back."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pacedrl.config import Config, TaskConfig, dump_config, load_config, parse_config
from pacedrl.errors import InputError

EXAMPLES = sorted(
    path for path in (Path(__file__).parent.parent / "examples").rglob("*.yaml") if path.parent.name != "verl"
)
"""All but the one in examples/verl, which is a configuration of verl."""


def reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text) > 3) for text in completions]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective.beta", 0.05),
        ("selection.target_accuracy", 0.5),
        ("selection.explore_fraction", 0.0),
        ("sampling.group_size", 8),
        ("sampling.temperature", 1.0),
        ("sampling.top_p", 1.0),
        ("sampling.max_prompt_tokens", 1024),
        ("sampling.max_new_tokens", 3072),
        ("optimizer.learning_rate", 1e-6),
        ("optimizer.weight_decay", 0.1),
        ("optimizer.schedule", "constant"),
        ("run.steps", 150),
        ("replay.capacity", 128),
        ("replay.admit", 64),
        ("replay.anchor", "behaviour"),
        ("model.trust_remote_code", False),
    ],
)
def test_defaults_are_the_papers_recipe(field: str, value: Any) -> None:
    section, _, name = field.partition(".")
    assert getattr(getattr(Config(), section), name) == value


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("optimizer.learning_rate=1e-6", ["optimizer", "learning_rate"], 1e-6),
        ("optimizer.learning_rate=3.0e-4", ["optimizer", "learning_rate"], 3e-4),
        ("objective.beta=1", ["objective", "beta"], 1.0),
        ("eval.k=[1,2,4]", ["eval", "k"], [1, 2, 4]),
        ("optimizer.betas=[0.9,0.95]", ["optimizer", "betas"], [0.9, 0.95]),
        ("run.dir=here/there", ["run", "dir"], "here/there"),
        ("model.lora={r: 4}", ["model", "lora"], {"r": 4, "alpha": 32, "target_modules": "all-linear"}),
        ("model.lora.r=8", ["model", "lora"], {"r": 8, "alpha": 32, "target_modules": "all-linear"}),
        ("model.gguf_file=null", ["model", "gguf_file"], None),
        ("model.name=a=b", ["model", "name"], "a=b"),
        ("data.train.source=rows.csv", ["data", "train", 0, "source"], "rows.csv"),
        ("data.train.options.size=7", ["data", "train", 0, "options"], {"size": 7}),
        ("verifier.check_gold=false", ["verifier", "check_gold"], False),
        ("tracking.trackers=[tensorboard]", ["tracking", "trackers"], ["tensorboard"]),
    ],
)
def test_overrides(override: str, path: list[str | int], value: Any) -> None:
    node: Any = dump_config(load_config(None, [override]))
    for name in path:
        node = node[name]
    assert node == value


def test_overrides_change_only_what_they_name_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data:\n  train:\n    - {source: rows.csv, options: {a: 1}}\nrun: {steps: 9, seed: 4}\n")
    config = load_config(file, ["run.steps=5", "data.train.options.b=2", "run.steps=6"])
    assert (config.run.steps, config.run.seed) == (6, 4)
    assert config.data.train[0].source == "rows.csv"
    assert config.data.train[0].options == {"a": 1, "b": 2}


def test_a_single_task_counts_as_a_list(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data:\n  train: {source: rows.csv}\n  eval: {source: held.csv}\n")
    config = load_config(file, ["data.train.limit=3"])
    assert [(task.source, task.limit) for task in config.data.train] == [("rows.csv", 3)]
    assert [task.source for task in config.data.eval] == ["held.csv"]


def test_null_means_no_evaluation() -> None:
    assert parse_config({"data": {"eval": None}}).data.eval == []
    with pytest.raises(InputError, match=r"data.train: .*list"):
        parse_config({"data": {"train": None}})


def test_an_override_cannot_choose_among_several_tasks(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {train: [{source: a.csv}, {source: b.csv}]}\n")
    with pytest.raises(InputError, match=r"data\.train.*several"):
        load_config(file, ["data.train.limit=3"])


def test_duplicate_keys_are_refused_and_merge_keys_work(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("run: {steps: 5}\nmodel: {name: tiny}\nrun: {seed: 1}\n")
    with pytest.raises(InputError, match=r"c\.yaml: not valid YAML: 'run' is given twice .*line 3"):
        load_config(file)
    file.write_text("data:\n  train: &t {source: a.csv, name: a}\n  eval: {<<: *t, name: b}\n")
    config = load_config(file)
    assert [(task.source, task.name) for task in (*config.data.train, *config.data.eval)] == [
        ("a.csv", "a"),
        ("a.csv", "b"),
    ]


@pytest.mark.parametrize("content", ["", "# only a comment\n", "{}\n"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, content: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    assert load_config(file) == Config()


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"objective": {"bta": 1}}, r"unknown key 'objective\.bta': did you mean 'objective\.beta'\?"),
        ({"zzzz": 1}, "unknown key 'zzzz': known keys are recipe, run, model, data,"),
        ({"data": {"train": [{}, {"colums": {}}]}}, r"unknown key 'data\.train\.1\.colums': did you mean .*columns'"),
        ({"data": {"train": {"columns": {"question": "q"}}}}, r"data\.train\.0\.columns"),
        ({"run": {"steps": 1.5}}, r"run\.steps: expected a whole number, got 1\.5$"),
        ({"run": {"steps": "many"}}, r"run\.steps: expected a whole number, got 'many'$"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas"),
        ({"optimizer": {"schedule": "step"}}, r"optimizer\.schedule: .*'constant', 'linear' or 'cosine'"),
        ({"eval": {"k": [1, 9]}}, r"eval: k = 9 needs at least as many samples per prompt, not 8"),
        ({"eval": {"k": [0]}}, r"eval\.k\.0"),
        ({"sampling": {"group_size": 1}}, r"sampling\.group_size: expected at least 2, got 1$"),
        ({"selection": {"target_accuracy": 1.01}}, r"selection\.target_accuracy: expected at most 1, got 1\.01$"),
        ({"sampling": {"temperature": 0}}, r"sampling\.temperature: expected more than 0, got 0$"),
        ({"replay": {"capacity": 0}}, r"replay\.capacity"),
        ({"partition": {"name": "closed_form", "learning_rate": 1}}, r"'partition\.learning_rate' of partition"),
        ({"partition": {"name": "closed_form", "featurs": 8}}, r"did you mean 'partition\.features'\?"),
        (
            {"partition": {"name": "closed_form", "features": 0}},
            r"mine\.yaml: partition\.features: .* 1, got 0$",
        ),
        ({"partition": {"discount": 0.9}}, r"'partition\.discount' of partition\.name = mlp: known keys are"),
        ({"partition": {"name": "knn"}}, r"partition\.name: unknown 'knn'; expected one of 'mlp', 'closed_form'"),
        ({"partition": {"projection": 64}}, r"unknown key 'partition\.projection': it was removed; .*name=closed_form"),
        ({"partition": {"name": "closed_form", "rescore_share": 0.1}}, r"'partition\.rescore_share': it was removed"),
        (
            {"model": {"attn_implementation": "flash_attention_2"}},
            r"model\.attn_implementation: .*'sdpa'.*'eager'.*'flash_attention_2'$",
        ),
        ({"optimizer": {"activation_offload": True}}, r"it was removed; optimizer\.gradient_checkpointing=true"),
        ({"selection": {"explore_fraction": 0.6, "retain_fraction": 0.5}}, r"selection\.explore_fraction: 0\.6 and"),
    ],
)
def test_an_error_is_one_line_that_names_the_field(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_config(tree, "mine.yaml")
    text = str(raised.value)
    assert text.startswith("mine.yaml: ")
    assert "\n" not in text
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.steps=0"], "command line: run.steps: expected at least 1, got 0"),
        (["run.seed=1", "run={steps: 0}"], "command line: run.steps: expected at least 1, got 0"),
        (["run.step=3"], "command line: unknown key 'run.step'"),
        (["data.train.columns.question=q"], "command line: data.train.0.columns.question"),
        (["partition.name=knn"], "command line: partition.name: unknown 'knn'"),
        (["selection.explore_fraction=0.9"], "command line: selection.explore_fraction: 0.9 and"),
        (["selection.retain_fraction=0.9"], "{file} and command line: selection.explore_fraction: 0.5 and"),
        (["eval.k=[1,9]"], "{file} and command line: eval: k = 9 needs"),
        (["run.seed=1"], "{file}: optimizer.learning_rate: expected more than 0, got -1"),
        ([], "{file}: optimizer.learning_rate: expected more than 0, got -1"),
    ],
)
def test_an_error_names_the_file_or_the_command_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    file = tmp_path / "c.yaml"
    wrong = "optimizer: {learning_rate: -1}" if "learning_rate" in message else ""
    file.write_text(f"selection: {{explore_fraction: 0.5, retain_fraction: 0.2}}\n{wrong}\n")
    with pytest.raises(InputError) as raised:
        load_config(file, overrides)
    assert str(raised.value).startswith(message.format(file=file))


@pytest.mark.parametrize("target", [0, 0.0, 1, 1.0, 0.25])
def test_target_accuracy_may_be_any_number_from_0_to_1(target: float) -> None:
    assert parse_config({"selection": {"target_accuracy": target}}).selection.target_accuracy == target


@pytest.mark.parametrize("tree", [{}, {"model": {"lora": {"r": 4}}, "run": {"dir": "a/b"}, "eval": {"k": [1, 3]}}])
def test_a_dumped_configuration_reads_back_the_same(tree: dict[str, Any]) -> None:
    config = parse_config(tree)
    text = yaml.safe_dump(dump_config(config))
    assert parse_config(yaml.safe_load(text)) == config


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    config = load_config(path)
    assert parse_config(yaml.safe_load(yaml.safe_dump(dump_config(config)))) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().run.steps = 3  # type: ignore[misc]


def test_a_function_at_the_top_level_of_a_module_is_a_verifier() -> None:
    verifier = TaskConfig(verifier=reward).verifier  # type: ignore[arg-type]
    assert verifier == f"{__file__}:reward"
    assert parse_config({"data": {"train": {"verifier": reward}}}).data.train[0].verifier == verifier


def _nested() -> Callable[..., Any]:
    def inner(completions: list[str], **_: Any) -> list[float]:
        return [1.0 for _ in completions]

    return inner


class _Callable:
    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        return [1.0 for _ in completions]


@pytest.mark.parametrize("function", [lambda completions, **_: [1.0], _nested(), _Callable(), len])
def test_a_function_that_other_processes_cannot_import_is_refused(function: Any) -> None:
    with pytest.raises(InputError, match=r"data\.train\.0\.verifier: .*top level of a module"):
        parse_config({"data": {"train": {"verifier": function}}})


@pytest.mark.parametrize("file", ["/tmp/ipykernel_7/123.py", "<ipython-input-1-abc>", "<stdin>"])
def test_the_error_for_a_function_in_a_notebook_suggests_a_file(file: str) -> None:
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def mine(completions, **_):\n    return [1.0]\n", file, "exec"), cell)
    with pytest.raises(InputError, match=r"%%writefile my_mine\.py\) and set the verifier to 'my_mine\.py:mine'"):
        parse_config({"data": {"train": {"verifier": cell["mine"]}}})
