"""Every snippet and command of the documentation works: it is run if that is cheap, else parsed and resolved.

A snippet or command without a rule fails.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from docs_blocks import PAGES, ROOT, Block, Command, blocks, commands

from pacedrl import cli
from pacedrl.config import apply_override, config_tree, load_config, parse_config
from pacedrl.recipes import RECIPES

QUICKSTART, GUIDE, FIRST_RUN, CONTRIBUTING, METHOD = (
    ROOT / f"docs/{name}.md" for name in ("index", "guide", "first_run", "contributing", "method")
)
ALL_BLOCKS = [block for page in PAGES if page.name != "README.md" for block in blocks(page)]
"""Blocks of all pages except the README, whose blocks are tested in test_docs.py."""
ALL_COMMANDS = [command for page in PAGES for command in commands(page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SMALLER = ["sampling.prompts_per_step=16", "data.eval.limit=16", "data.train.limit=128", "verifier.workers=1"]
PLACEHOLDERS = {"MODEL": "tiny", "RUN": "runs/mine", "NAME": "paced", "FILE.yaml": "variants.yaml"}
THEIRS = re.compile(r"(\w+/)?(my|mine|CONFIG)(\.yaml)?")
"""Name of a configuration that the reader has written."""


def of_language(language: str) -> list[Block]:
    return [block for block in ALL_BLOCKS if block.language == language]


def python_of(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.language == "python"]


def is_reward(code: str) -> bool:
    return code.startswith("def reward(")


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the commands of the quickstart from its second section on in a separate folder, and return the folder.

    The configuration that `pacedrl init` writes is made smaller, so that the commands take seconds.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    make_rows, reward, _ = python_of(QUICKSTART)
    assert is_reward(reward)
    (folder / "my_reward.py").write_text(reward)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PACEDRL_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        exec(make_rows, {})
        for command in commands(QUICKSTART):
            program, verb, *rest = [*command.words, ""]
            # runs/demo is made by `make demo`, and watch runs until it is stopped.
            if program == "pacedrl" and any(rest) and "runs/demo" not in rest and verb != "watch":
                assert cli.main(command.words[1:]) == 0, command
            if program == "pacedrl" and verb == "init":
                shutil.copyfile("mine.yaml", "as_init_wrote_it.yaml")
                Path("mine.yaml").write_text(yaml.safe_dump(config_tree(Path("mine.yaml"), SMALLER)))
        yield folder


def test_the_quickstart_ends_with_a_policy_that_learned_and_a_report(walked: Path) -> None:
    rows = [json.loads(line) for line in (walked / "runs/mine/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert sum(row["reward/mean"] for row in rows[-5:]) > sum(row["reward/mean"] for row in rows[:5])
    assert sum(row["verifier/errors"] for row in rows) == 0
    report = (walked / "runs/mine/report.html").read_text(encoding="utf-8")
    assert 'id="diagnosis"' in report


def test_the_quickstart_shows_what_init_writes(walked: Path) -> None:
    (shown,) = (block.text for block in blocks(QUICKSTART) if block.language == "yaml")
    assert yaml.safe_load(shown) == yaml.safe_load((walked / "as_init_wrote_it.yaml").read_text())


def test_the_quickstart_from_python_trains(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (walked / "example.py").write_text(python_of(QUICKSTART)[-1])
    runpy.run_path(str(walked / "example.py"), run_name="__main__")
    step, rollouts = map(int, capsys.readouterr().out.split())
    sampling = load_config(walked / "mine.yaml").sampling
    assert (step, rollouts) == (5, 5 * sampling.prompts_per_step * sampling.group_size)


def test_the_guides_python_reads_a_run(walked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = python_of(GUIDE)
    exec(code, {})
    step, reward, mixed, error = map(float, capsys.readouterr().out.split())
    assert step == 20
    assert all(0.0 <= value <= 1.0 for value in (reward, mixed, error))


class TwoBatches:
    """A sampler with two batches under way, each of which arrives in two halves; the rewards are 1 and 0."""

    def __init__(self) -> None:
        self.halves: list[tuple[list[str], int]] = []

    def has_room(self) -> bool:
        return len(self.halves) < 4

    def start(self, keys: list[str], policy_step: int) -> None:
        self.halves += [(keys[::2], policy_step), (keys[1::2], policy_step)]

    def finished(self) -> SimpleNamespace:
        keys, policy_step = self.halves.pop(1)  # out of order
        return SimpleNamespace(keys=keys * 2, rewards=[1.0, 0.0] * len(keys), policy_steps=policy_step)


def test_the_loop_with_several_batches_under_way_runs() -> None:
    (code,) = python_of(METHOD)
    sampler, trained = TwoBatches(), list[str]()

    def train(done: SimpleNamespace, advantage_B: torch.Tensor) -> float:
        assert len(advantage_B) == len(done.keys)
        trained.extend(done.keys)
        return 0.0

    keys = [f"prompt {i}" for i in range(200)]
    names = {"keys": keys, "embeddings": torch.randn(200, 4), "steps": 6, "sampler": sampler, "train": train}
    exec(code, names)
    scheduler: Any = names["scheduler"]
    assert sorted(scheduler.leased()) == sorted(key for half, _ in sampler.halves for key in half)
    assert scheduler.visits_N.sum() == len(trained) / 2 == 6 * 16


@pytest.mark.parametrize("block", of_language("python"), ids=lambda block: block.where)
def test_python_is_a_reward_or_was_run(block: Block) -> None:
    if is_reward(block.text):
        names: dict[str, Any] = {}
        exec(block.text, names)
        assert names["reward"](prompts=["p"], completions=[" 4 "], answer=["4"]) == [1.0]
        assert names["reward"](prompts=["p"], completions=["5"], answer=["4"]) == [0.0]
    else:
        run = {
            QUICKSTART: 2,
            GUIDE: 1,
            FIRST_RUN: 2,
            CONTRIBUTING: 4,
            METHOD: 1,
        }  # run by the tests above and in other files
        assert [is_reward(code) for code in python_of(block.page)].count(False) == run.get(block.page)


@pytest.mark.parametrize("block", of_language("yaml"), ids=lambda block: block.where)
def test_yaml_is_a_configuration(block: Block) -> None:
    tree = yaml.safe_load(block.text)
    parse_config(tree, block.where)
    assert tree


def test_every_block_is_of_a_language_with_a_rule() -> None:
    assert {block.language for block in ALL_BLOCKS} == {"python", "yaml", "sh", "text"}
    # Only the usage lines of verbs, on the page generated from the parser, are not code.
    usages = [block for block in ALL_BLOCKS if block.language == "text"]
    assert all(block.page.name == "cli.md" and block.text.startswith("pacedrl ") for block in usages)


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=lambda command: f"{command.where} {command.text[:60]}")
def test_every_command_is_one_that_works(command: Command) -> None:
    text = re.sub(r"^(\w+=\S+ )*", "", command.text)
    check(Command(command.where, text).words)


def test_the_examples_of_help_work() -> None:
    (verbs,) = (action.choices for action in cli.build_parser()._actions if action.dest == "verb")
    examples = {name: verb.epilog for name, verb in verbs.items()}
    assert all(text and text.startswith("example: pacedrl ") for text in examples.values()), examples
    for text in examples.values():
        check(text.removeprefix("example: ").split())


def check(words: list[str]) -> None:
    """Fail unless the command's program, files, options and settings exist."""
    program, *rest = words
    match program:
        case "pacedrl":
            check_pacedrl(rest)
        case "torchrun":
            from torch.distributed.run import get_args_parser

            options = get_args_parser().parse_args(rest)
            assert (options.module, options.training_script) == (True, "pacedrl.cli")
            check_pacedrl(options.training_script_args)
        case "python" if rest[0] == "-m":
            assert rest[1] == "vllm.entrypoints.openai.api_server"  # docs/serving.md
        case "python3":
            assert rest == ["-m", "venv", ".venv"]
        case "python" if len(rest) == 1 and "/" not in rest[0]:  # a file written by the reader
            assert any(block.text.startswith(f"# {rest[0]}\n") for block in of_language("python"))
        case "python":
            path = ROOT / rest[0]
            source = (path / "__main__.py" if path.is_dir() else path).read_text(encoding="utf-8")
            ast.parse(source)
            assert all(flag in source for flag in rest[1:] if flag.startswith("--") and flag != "--help")
        case "make":
            assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in rest)
        case "uv" if rest[0] == "venv":
            assert rest[1:] == ["--seed"]  # with pip, which make uses
        case "uv":
            assert rest[0] == "pip"
            check(rest)
        case "pre-commit":
            assert rest == ["install"]
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case "pip":
            assert rest[0] == "install"
            extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
            assert all(extra in EXTRAS for one in extras for extra in one.split(","))
        case "pytest" | "ruff" | "mypy":
            assert any(one.startswith(program) for one in EXTRAS["dev"])
            assert all((ROOT / path).exists() for path in rest if "/" in path)
        case "." if rest == [".venv/bin/activate"]:
            pass
        case "vllm":
            module, _, name = rest[rest.index("--worker-extension-cls") + 1].rpartition(".")
            assert f"class {name}" in (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        case "for":  # for recipe in A B; do
            names = " ".join(rest[2:]).removesuffix("; do").split()
            assert set(names) <= set(RECIPES)
        case "done":
            assert rest == []
        case _:
            assert (ROOT / program).is_file(), f"no rule for {' '.join(words)}"


def check_pacedrl(words: list[str]) -> None:
    """Fail unless the command line parses and its configuration, with its settings, is valid."""
    words = [PLACEHOLDERS.get(word, word).replace("$recipe", "paced") for word in words]
    (verbs,) = (action.choices for action in cli.build_parser()._actions if action.dest == "verb")
    if words == ["VERB", "--help"]:
        return
    assert words[0] in verbs, f"no such verb: {words[0]}"
    if len(words) == 1 and words[0] != "recipes":
        return  # a mention
    options = cli.parse(words)
    recipe = getattr(options, "recipe", None) or getattr(options, "name", None)
    assert recipe is None or recipe in RECIPES
    assert set(filter(None, (getattr(options, "recipes", None) or "").split(","))) <= set(RECIPES)
    config, overrides = getattr(options, "config", None), getattr(options, "overrides", [])
    if config is not None and not THEIRS.fullmatch(str(config)):
        load_config(ROOT / config, overrides)
    else:
        tree: dict[str, Any] = {}
        for override in overrides:
            apply_override(tree, override)
        parse_config(tree)
