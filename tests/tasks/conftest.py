"""Fixtures: files of rows, and a verifier that does what the completion says."""

import json
import textwrap

import pytest
from pool_helpers import JUDGES, prompt

from pacedrl.tasks.pool import Job


@pytest.fixture
def write(tmp_path):
    """Write a file into the test's own folder and return its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


@pytest.fixture
def rows_file(write):
    """Return a function that writes rows to a JSONL file."""
    return lambda *rows: write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Return the file of a verifier that does what the completion says."""
    path = tmp_path_factory.mktemp("judges") / "judges.py"
    path.write_text(textwrap.dedent(JUDGES), encoding="utf-8")
    return path


@pytest.fixture
def behave(judges):
    """Return a function that makes jobs for it, one for each text."""
    return lambda *texts: [Job(f"{judges}:behave", prompt(), text) for text in texts]
