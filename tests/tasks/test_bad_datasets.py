"""Bad sources, files and rows are refused with one line that names them."""

import gzip
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import load_task

ROW = {"question": "1 + 1 = ?", "answer": "2"}


def refusal(source, **options):
    with pytest.raises(InputError) as error:
        load_task(TaskConfig(source=str(source), **options))
    message = str(error.value)
    assert "\n" not in message
    return message


def fail_to_connect(*_, **__):
    raise AssertionError("the hub was tried")


def test_missing_files_and_unknown_kinds(write, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", fail_to_connect)
    path = write("train.jsonl", "")
    assert refusal(tmp_path / "trian.jsonl") == f"{tmp_path}/trian.jsonl: no such file; did you mean {path}?"
    assert refusal("no/such/folder/x.csv") == (
        "no/such/folder/x.csv: no such file; there is no folder no/such/folder either"
    )
    assert refusal("./zzz") == "zzz: no such file"
    assert refusal("zzz*.csv") == "zzz*.csv: no file matches this pattern"
    text = write("rows.txt", "x")
    assert f"{text}: cannot read this kind of file; expected .jsonl, " in refusal(text)
    monkeypatch.chdir(tmp_path)
    assert "rows.txt: cannot read this kind of file" in refusal("rows.txt")
    assert "a file takes none" in refusal(path, options={"size": 3})


BAD_FILES = [
    (
        "a.jsonl",
        '{"prompt": "a", "answer": 1}\n\n{"prompt": \n',
        "line 3: not valid JSON (Expecting value at column 11)",
    ),
    ("a.jsonl", "[1]\n", 'line 1: expected an object such as {"prompt": ..., "answer": ...}, got a list'),
    ("a.jsonl", b'{"prompt": "a", "answer": 1}\n"\xff"\n', "line 2: is not UTF-8 text; save the file as UTF-8"),
    ("a.jsonl", "", "a.jsonl: holds no rows; expected one prompt per row"),
    ("a.jsonl.gz", b"plain", "a.jsonl.gz: cannot read it: Not a gzipped file"),
    ("a.jsonl.gz", gzip.compress(b"x" * 100, mtime=0)[:-9], "a.jsonl.gz: cannot read it: Compressed file ended before"),
    ("a.json", "[]", "a.json: holds no rows"),
    ("a.json", '{"data": []}', "a.json: expected a list of rows, got an object with keys data"),
    ("a.json", "3", "a.json: expected a list of rows, got a number"),
    ("a.json", "[1]", "row 1: expected an object"),
    (
        "a.json",
        "[\n{]",
        "a.json: not valid JSON (Expecting property name enclosed in double quotes at line 2 column 2)",
    ),
    ("a.json", "{}\n{}", "is it JSONL? Then name it .jsonl"),
    ("a.json", b"\xff\xfe", "a.json: is not UTF-8 text; save it as UTF-8"),
    (
        "a.csv",
        "prompt,answer\na,1\nb,1,000\n",
        "row 2 has 3 values, the header 2; put values that hold commas in double",
    ),
    ("a.csv", "prompt,answer\na,1\nb\n", "row 2 has 1 values, the header 2"),
    ("a.csv", "prompt,answer,prompt\na,1,b\n", "a.csv: column 'prompt' is there twice; rename one"),
    ("a.csv", 'prompt,answer\na,1\n"b"c,1\n', "row 2 is not valid CSV"),
    ("a.csv", "prompt,answer\n", "a.csv: holds no rows"),
    ("a.csv", "", "a.csv: holds no rows"),
    (
        "a.csv",
        "prompt,answer\na,1\nb,\n",
        "row 2: the answer (column 'answer') is empty, and the verifier 'math' needs",
    ),
    ("a.parquet", "no parquet", "a.parquet: not a readable parquet file: "),
    (
        "a.jsonl",
        '{"prompt": "b", "answer": 1}\n{"prompt": "a\\ud83d", "answer": 1}',
        "line 2: the prompt holds the lone surrogate '\\ud83d', not a character",
    ),
    (
        "a.jsonl",
        '{"prompt": [{"role": "user", "content": "\\udc00"}], "answer": 1}',
        "line 1: the prompt holds the lone surrogate",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_broken_files_name_file_and_row(write, name, content, message):
    path = write(name, content)
    assert message in refusal(path)
    assert str(path) in refusal(path)


BAD_ROWS = [
    (
        {"text": "a", "answer": 1},
        {},
        "no prompt column (prompt, question, problem, instruction, query); it has text, a",
    ),
    (
        {"prompt": "a", "out": 1},
        {},
        "and the verifier 'math' needs one; it has prompt, out; say which with columns.ans",
    ),
    (
        {"prompt": "a", "answer": 1},
        {"columns": {"prompt": "promt"}},
        "no column 'promt'; it has prompt, answer; did you",
    ),
    ({"prompt": " \n", "answer": 1}, {}, "the prompt (column 'prompt') is empty; remove the row or fill it in"),
    ({"prompt": None, "answer": 1}, {}, "the prompt (column 'prompt') is empty"),
    ({"prompt": [], "answer": 1}, {}, "the prompt (column 'prompt') is empty"),
    ({"prompt": 3, "answer": 1}, {}, "the prompt (column 'prompt') is a int; expected text or chat messages"),
    (
        {"prompt": [{"role": "user", "content": [1]}], "answer": 1},
        {},
        "expected chat messages with a role and non-empty",
    ),
    ({"prompt": [{"content": "a"}], "answer": 1}, {}, "expected chat messages with a role"),
    ({"prompt": ["a"], "answer": 1}, {}, "expected chat messages with a role"),
    (
        {"prompt": [{"role": "user", "content": " "}], "answer": 1},
        {},
        "expected chat messages with a role and non-empty",
    ),
    ({"prompt": "a", "answer": None}, {}, "the answer (column 'answer') is empty, and the verifier 'math' needs one"),
    (
        {"prompt": "a", "answer": float("nan")},
        {"verifier": "numeric"},
        "is empty, and the verifier 'numeric' needs one",
    ),
    (
        {"prompt": "a", "answer": 1},
        {"prompt_template": "{promt}"},
        "no column 'promt'; it has prompt, answer; did you m",
    ),
    (
        {"prompt": None, "answer": 1},
        {"prompt_template": "{prompt}"},
        "column 'prompt' is empty, and prompt_template uses",
    ),
    ({"prompt": "a", "answer": 1}, {"prompt_template": "\\boxed{}"}, "prompt_template does not fit: "),
    ({"prompt": "a", "answer": 1}, {"prompt_template": "{prompt"}, "prompt_template does not fit: expected '}' before"),
    ({"prompt": "a", "answer": 1}, {"prompt_template": "{prompt[x]}"}, "prompt_template does not fit: "),
    (
        {"prompt": "a", "answer": 1},
        {"prompt_template": "{prompt:d}"},
        "prompt_template does not fit: Unknown format code",
    ),
]


@pytest.mark.parametrize(("row", "options", "message"), BAD_ROWS)
def test_bad_rows_name_file_and_line(rows_file, row, options, message):
    good = {key: (3 if key == "answer" else "fine") for key in row}
    if message.startswith(("no ", "and ")) or "template" in message:  # wrong with every row
        path, line = rows_file(row), 1
    else:
        path, line = rows_file(good, row), 2
    assert message in refusal(path, **options)
    assert refusal(path, **options).startswith(f"{path}: line {line}: ")


def test_a_later_row_without_the_column_is_named(rows_file):
    path = rows_file({"prompt": "a", "answer": 1}, {"prompt": "a", "anwser": 1})
    assert refusal(path) == f"{path}: line 2: no column 'answer'; it has prompt, anwser; did you mean 'anwser'?"


def test_template_and_prompt_column_exclude_each_other(rows_file):
    path = rows_file(ROW)
    assert "keep one" in refusal(path, prompt_template="{question}", columns={"prompt": "question"})


def test_values_that_json_cannot_hold_are_named(tmp_path):
    path = tmp_path / "bytes.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "answer": [1], "image": [b"\x00"]}), path)
    assert refusal(path) == (
        f"{path}: row 1: column 'image' holds a bytes, which verifiers cannot be sent; remove the column"
    )


def test_unknown_verifiers_are_refused_before_anything_is_read():
    assert "did you mean 'numeric'?" in refusal("absent.jsonl", verifier="numerc")


def test_gym_refusals(monkeypatch):
    pytest.importorskip("reasoning_gym")
    assert "gym:chain_sums: reasoning-gym has no such dataset; did you mean chain_sum" in refusal("gym:chain_sums")
    assert "there are ab, acre, " in refusal("gym:zzzzzzzzzzzzzzz")
    unknown = refusal("gym:chain_sum", options={"siz": 3})
    assert "gym:chain_sum: bad options: " in unknown
    assert "'siz'" in unknown
    assert "its options are min_terms, max_terms, " in unknown
    assert "bad options: " in refusal("gym:chain_sum", options={"min_terms": 0})
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert 'pip install "pacedrl[gym]"' in refusal("gym:chain_sum")


def test_hub_failures_say_what_was_tried(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route to host\nand a long explanation")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("someone/something", split="tset")
    assert message.startswith(
        "hub dataset 'someone/something' (split 'tset') cannot be loaded: ConnectionError: no route to host; check name"
    )


def test_dotted_paths_that_lead_nowhere(rows_file):
    path = rows_file({"prompt": "q", "out": {"a.b": [1, 2]}})
    assert refusal(path, columns={"answer": "out.a.c"}) == (
        f"{path}: line 1: no column 'out.a.c'; it has prompt, out; did you mean 'out'?"
    )


def test_skipping_every_row(rows_file):
    assert refusal(rows_file(ROW), skip=1).endswith("holds no rows after skipping 1; expected one prompt per row")
