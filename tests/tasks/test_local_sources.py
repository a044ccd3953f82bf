"""Tests of folders, shards, patterns, lists of files, saved data sets, and more kinds of files."""

import bz2
import gzip
import json
import lzma
import time

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from pacedrl.config import TaskConfig, parse_config
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import load_task
from pacedrl.tasks.sources import default_name, split_names

TRAIN = [{"prompt": f"reverse:{n}=", "answer": f"{n}"[::-1]} for n in range(100, 106)]
TEST = [{"prompt": f"copy:{n}=", "answer": f"0{n}"} for n in range(100, 102)]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def repo(tmp_path):
    """Make a data set's repository as on the hub: shards in a folder, two splits."""
    folder = tmp_path / "repo"
    (folder / "data").mkdir(parents=True)
    for name, rows in [("train-0-of-2", TRAIN[:3]), ("train-1-of-2", TRAIN[3:]), ("test-0-of-1", TEST)]:
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}.parquet")
    (folder / "README.md").write_text("# Some data\n")
    return folder


def load(source, **options):
    return load_task(TaskConfig(source=source, verifier="exact", **options))


def pairs(source, **options):
    return [{"prompt": prompt.content, "answer": prompt.answer} for prompt in load(source, **options).prompts]


def refusal(source, **options):
    with pytest.raises(InputError) as refused:
        load(source, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_of_shards_is_read_by_any_path_to_it(repo):
    for source in ("repo", "./repo", str(repo), "repo/"):
        assert pairs(source) == TRAIN
        assert pairs(source, split="test") == TEST
        assert load(source).name == default_name(source) == "repo"
    assert split_names("repo", None) == ["train", "test"]
    assert pairs("repo", split="train[:2]") == TRAIN[:2]
    assert refusal("repo", split="tset") == "repo: has no split 'tset'; it has train, test"


def test_a_folder_goes_before_a_hub_dataset_of_its_name(repo):
    repo.parent.joinpath("openai").mkdir()
    repo.rename(repo.parent / "openai" / "gsm8k")
    assert pairs("openai/gsm8k") == TRAIN


@pytest.mark.parametrize("named", ["saved", "./saved"])
def test_a_saved_dataset_is_read_by_its_splits(named):
    parts = {"train": datasets.Dataset.from_list(TRAIN), "test": datasets.Dataset.from_list(TEST)}
    datasets.DatasetDict(parts).save_to_disk("saved")
    assert pairs(named) == TRAIN
    assert pairs(named, split="test") == TEST
    assert split_names(named, None) == ["train", "test"]
    assert refusal(named, split="tset") == "saved: has no split 'tset'; it has train, test"
    assert "takes no options" in refusal(named, options={"name": "main"})
    assert pairs("saved/train/*.arrow") == TRAIN


def test_a_saved_split_is_read_only_under_its_own_name(repo):
    datasets.load_dataset("repo", split="train").save_to_disk("saved-one")
    assert pairs("saved-one") == pairs("saved-one", split="train") == TRAIN
    assert refusal("saved-one", split="test") == (
        "saved-one: is the split 'train' of a dataset, and has no split 'test'"
    )
    (repo.parent / "saved-one" / "data-00000-of-00001.arrow").write_bytes(b"")
    assert refusal("saved-one").startswith("saved-one: not a readable saved dataset: ")


def test_patterns_and_lists(repo):
    assert pairs("repo/data/train-*.parquet") == TRAIN
    assert pairs(["repo/data/train-0-of-2.parquet", "repo/data/test-0-of-1.parquet"]) == TRAIN[:3] + TEST
    assert pairs(["repo", "repo/data/test-*"]) == TRAIN + TEST
    assert default_name(["repo/data/train-0-of-2.parquet", "x"]) == "train-0-of-2"
    assert refusal("repo/data/*.jsonl") == "repo/data/*.jsonl: no file matches this pattern"
    assert refusal(["repo", "repo.csv"]) == "repo.csv: no such file; did you mean repo?"
    assert "repo/README.md: cannot read this kind of file" in refusal("repo/*.md")


def test_arrow_files_of_both_formats(tmp_path):
    table = pa.Table.from_pylist(TRAIN)
    for name, writer in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with writer(str(tmp_path / f"{name}.arrow"), table.schema) as out:
            out.write_table(table)
        assert pairs(f"{name}.arrow") == TRAIN


def test_a_url_is_refused():
    assert refusal("https://example.com/a.jsonl").startswith("https://example.com/a.jsonl: URLs are not read; download")


@pytest.mark.parametrize("source", [3, [], [3], "", None, {"train": "rows.csv"}])
def test_values_that_are_not_a_source_are_refused(source):
    with pytest.raises(
        InputError, match=r"data\.train\.0\.source: must be the name of a source, or a list of such names"
    ):
        parse_config({"data": {"train": {"source": source}}})


def test_a_file_whose_name_looks_like_a_pattern(repo):
    (repo.parent / "rows[1].jsonl").write_text(json.dumps(TRAIN[0]))
    assert pairs("rows[1].jsonl") == TRAIN[:1]


def test_folders_without_data(tmp_path):
    (tmp_path / "empty").mkdir()
    message = refusal("empty")
    assert message.startswith("empty: this folder (split 'train') cannot be loaded: ")
    assert "or a folder that save_to_disk wrote" in message


def test_a_folder_that_cannot_be_read_says_why(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "1.jsonl").write_text('{"prompt": "a", "answer": "1"}\n')
    (folder / "2.jsonl").write_text('{"prompt": "a", "gold": "1"}\n')
    assert "because column names don't match" in refusal("mixed")
    configs = "".join(f"- config_name: {name}\n  data_files: {n}.jsonl\n" for n, name in enumerate(("main", "hard"), 1))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert "Please pick one among the available configs: ['main', 'hard']" in refusal("mixed")
    assert pairs("mixed", options={"name": "main"}) == [{"prompt": "a", "answer": "1"}]


LINES = "".join(json.dumps(row) + "\n" for row in TRAIN)
TSV = "prompt\tanswer\n" + "".join(f"{row['prompt']}\t{row['answer']}\n" for row in TRAIN)
COLUMNS = {name: {str(i): row[name] for i, row in enumerate(TRAIN)} for name in ("prompt", "answer")}
TABLES = {
    "wrapped": {"data": TRAIN},
    "beside what else there is": {"version": 1, "tags": ["a"], "rows": TRAIN},
    "pandas, columns": COLUMNS,
    "pandas, index": {str(i): row for i, row in enumerate(TRAIN)},
    "pandas, split": {"columns": ["prompt", "answer"], "index": [0], "data": [list(row.values()) for row in TRAIN]},
    "pandas, table": {"schema": {"fields": [{"name": "prompt"}]}, "data": TRAIN},
    "lists": {name: list(cells.values()) for name, cells in COLUMNS.items()},
    "by name": {f"row {i}": row for i, row in enumerate(TRAIN)},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_json_tables_of_other_forms(write, table):
    assert pairs(str(write("rows.json", json.dumps(table)))) == TRAIN


def test_json_that_holds_several_tables(write):
    path = write("rows.json", json.dumps({"train": TRAIN, "test": TEST}))
    assert refusal(str(path)) == (
        f"{path}: expected a list of rows, got an object with several lists of rows (train, test); save one list of "
        "rows per file"
    )
    assert "got an object with keys prompt, answer" in refusal(str(write("rows.json", json.dumps(TRAIN[0]))))


def zstandard(content):
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstandard)],
)
def test_compressed_text(write, ending, compress):
    path = write(f"rows.jsonl{ending}", compress(LINES.encode()))
    assert pairs(str(path)) == TRAIN
    assert load(str(path)).name == "rows"
    path = write(f"rows.tsv{ending}", compress(TSV.encode()))
    assert pairs(str(path)) == TRAIN
    plain = write(f"plain.jsonl{ending}", LINES)
    message = refusal(str(plain))
    assert message.startswith(f"{plain}: cannot read it: ")
    assert message.endswith("; is it compressed as its name says?")


def test_lines_and_tabs(write):
    assert pairs(str(write("rows.ndjson", LINES))) == TRAIN
    assert pairs(str(write("ROWS.TSV", TSV))) == TRAIN
    assert "row 1 has 1 values, the header 2; put values that hold tabs in double quotes" in refusal(
        str(write("rows.tsv", "prompt\tanswer\na b\n"))
    )


@pytest.mark.parametrize(("name", "hint"), [("a.xlsx", "save the sheet as CSV"), ("a.zip", "unpack it")])
def test_other_files_are_refused_with_what_to_do(write, name, hint):
    path = write(name, "x")
    message = refusal(str(path))
    assert message.startswith(f"{path}: cannot read this kind of file; expected .jsonl, .ndjson, .json, ")
    assert message.endswith(f"; {hint}")


def test_a_field_of_csv_may_be_long(write):
    long = "x" * 2_000_000
    assert pairs(str(write("rows.csv", f"prompt,answer\n{long},4\n"))) == [{"prompt": long, "answer": "4"}]


def test_without_a_network_a_hub_dataset_is_refused_soon(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    start = time.monotonic()
    message = refusal("nobody/nothing")
    assert time.monotonic() - start < 10.0
    assert message.startswith("hub dataset 'nobody/nothing' (split 'train') cannot be loaded: ConnectionError: ")
    assert not constants.HF_HUB_OFFLINE
