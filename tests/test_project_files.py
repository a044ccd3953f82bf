"""Files at the root of the repository name commands, files and versions that exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pacedrl
from pacedrl.training.checkpoint import STATE_FORMAT

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
OTHERS = {"sudo", "apt-get", "pip", "mkdocs", "twine", "python"}
"""Programs that workflows may run besides files of the repository."""


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def run_lines(workflow: Path) -> Iterator[list[str]]:
    for job in read(str(workflow.relative_to(ROOT)))["jobs"].values():
        for step in job["steps"]:
            for line in step.get("run", "").replace(" && ", "\n").splitlines():
                yield shlex.split(line)


def test_the_workflows_are_those_for_tests_docs_and_releases() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_programs_that_exist(workflow: Path) -> None:
    lines = list(run_lines(workflow))
    assert lines
    for program, *rest in lines:
        assert program in OTHERS or (ROOT / program).is_file(), program
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        assert set(extras) <= PYPROJECT["project"]["optional-dependencies"].keys()


def test_the_tests_workflow_covers_every_supported_version_of_python() -> None:
    tested = read(".github/workflows/tests.yml")["jobs"]["tests"]["strategy"]["matrix"]["python"]
    classifiers = PYPROJECT["project"]["classifiers"]
    assert tested == [name.rpartition(" ")[2] for name in classifiers if re.search(r":: 3\.\d+$", name)]


def test_pre_commit_runs_the_checks_of_make_test() -> None:
    entries = [hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    checks = re.findall(r"^\t\$\(BIN\)/(ruff|mypy)( \w+)?", MAKEFILE.partition("\ntest:")[2].partition("\n\n")[0], re.M)
    assert entries == [program + verb for program, verb in checks]


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == pacedrl.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    (paper,) = citation["references"]
    assert paper["url"].endswith("2602.12642")
    assert {"title", "authors", "year"} <= paper.keys()


def test_the_changelog_describes_the_current_format_of_checkpoints() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    formats = re.findall(r"^\| (\d+) \|", changelog.partition("### Checkpoint formats")[2], re.M)
    assert formats == [str(number) for number in range(STATE_FORMAT, 0, -1)]


def test_the_wheel_contains_every_data_file() -> None:
    package = ROOT / "pacedrl"
    packaged = {
        path for glob in PYPROJECT["tool"]["setuptools"]["package-data"]["pacedrl"] for path in package.glob(glob)
    }
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data - packaged == {package / "assets/README.md"}
