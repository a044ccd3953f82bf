"""Files of rows."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a file into the test's own folder; its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


@pytest.fixture
def rows_file(write):
    """A JSONL file of the rows given."""
    return lambda *rows: write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
