"""The first contact: the command alone, --help, and messages that point to a page."""

from __future__ import annotations

import argparse
import pickle
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from pacedrl.cli import FIRST_STEPS, build_parser, main, parse
from pacedrl.config import parse_config
from pacedrl.errors import InputError, Page

ROOT = Path(__file__).resolve().parents[1]


def verbs() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def test_the_command_alone_prints_the_first_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", FIRST_STEPS)
    assert len(FIRST_STEPS.splitlines()) <= 10
    assert all(len(line) <= 120 for line in FIRST_STEPS.splitlines())


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    (example,) = re.findall(r"example: (pacedrl .*)", shown)
    program, *arguments = shlex.split(example)
    assert (program, arguments[0]) == ("pacedrl", verb)
    options = parse(arguments)
    assert options.verb == verb
    for path in vars(options).values():
        if isinstance(path, Path) and path.parts[0] == "examples":
            assert (ROOT / path).is_file()


@pytest.mark.parametrize("verb", ["init", "recipes"])
def test_quick_examples_run(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    epilog = verbs()[verb].epilog
    assert epilog is not None
    assert main(shlex.split(epilog)[2:]) == 0
    assert "paced" in capsys.readouterr().out


def test_every_page_that_messages_name_is_there() -> None:
    for page in get_args(Page):
        assert (ROOT / f"docs/{page}.md").is_file()


@pytest.mark.parametrize(
    ("tree", "page"),
    [
        ({"runn": {}}, "configuration"),
        ({"objective": {"betta": 1}}, "configuration"),
        ({"gate": {"name": "dynamite"}}, "configuration"),
        ({"recipe": "pased"}, "recipes"),
        ({"sampling": {"engine": "vllm_server"}}, "serving"),
        ({"sampling": {"engine": "vllm_server", "servers": ["here"]}}, "serving"),
        ({"scale": {"shard": 3}}, "scale"),
    ],
)
def test_messages_point_to_a_page(tree: dict[str, object], page: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_config(tree)
    assert str(raised.value).endswith(f" (see docs/{page}.md)")
    assert "\n" not in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # It crosses processes.


def test_a_message_without_a_page() -> None:
    with pytest.raises(InputError, match=r"run\.steps: expected at least 1, got 0$"):
        parse_config({"run": {"steps": 0}})
