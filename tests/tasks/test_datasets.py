"""Files, generators and hub datasets become prompts."""

import csv
import datetime
import gzip
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pacedrl.config import TaskConfig
from pacedrl.errors import InputError
from pacedrl.tasks.datasets import load_task
from pacedrl.tasks.verifiers import gold_completion, judge, resolve
from pacedrl.types import prompt_key

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROWS = [{"question": "1 + 1 = ?", "answer": "2", "level": 1}, {"question": "2 + 2 = ?", "answer": "4", "level": 2}]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(source, **options):
    return load_task(TaskConfig(source=str(source), **options))


# Sources


def csv_text(rows):
    return "question,answer,level\n" + "".join(f"{r['question']},{r['answer']},{r['level']}\n" for r in rows)


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize("zip_it", [False, True], ids=["", "gz"])
@pytest.mark.parametrize(
    ("kind", "text"), [("jsonl", jsonl(ROWS)), ("json", json.dumps(ROWS)), ("csv", csv_text(ROWS))]
)
def test_text_files(write, kind, text, zip_it, bom):
    content = bom + text.encode("utf-8")
    path = write(f"sums.{kind}.gz", gzip.compress(content)) if zip_it else write(f"sums.{kind}", content)
    task = load(path)
    assert (task.name, task.verifier) == ("sums", "math")
    assert [(p.content, p.answer, p.task) for p in task.prompts] == [
        ("1 + 1 = ?", "2", "sums"),
        ("2 + 2 = ?", "4", "sums"),
    ]
    number = str if kind == "csv" else int
    assert [p.columns for p in task.prompts] == [{"level": number(1)}, {"level": number(2)}]
    assert task.prompts[0].key == prompt_key("1 + 1 = ?", "2")


def test_parquet_types_become_json_values(tmp_path):
    table = pa.table(
        {
            "question": ["q"],
            "answer": [Decimal("12.50")],
            "whole": [Decimal("3")],
            "day": [datetime.date(2024, 2, 29)],
            "when": [datetime.datetime(2024, 2, 29, 12)],
            "wait": [datetime.timedelta(seconds=90)],
            "vector": [np.array([1.0, 2.0])],
            "nested": [{"numbers": [1, None], "at": datetime.date(2024, 1, 1)}],
        }
    )
    pq.write_table(table, tmp_path / "types.parquet")
    (prompt,) = load(tmp_path / "types.parquet").prompts
    assert prompt.answer == 12.5
    assert prompt.columns == {
        "whole": 3,
        "day": "2024-02-29",
        "when": "2024-02-29T12:00:00",
        "wait": 90.0,
        "vector": [1.0, 2.0],
        "nested": {"numbers": [1, None], "at": "2024-01-01"},
    }
    assert json.loads(json.dumps(prompt.columns)) == prompt.columns


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1))
def test_csv_reads_what_csv_writes(tmp_path_factory, pairs):
    pairs = [(q, a) for q, a in pairs if q.strip() and "\x00" not in q + a]
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *pairs])
    except UnicodeEncodeError:  # a lone surrogate is no text a file can hold
        return
    if pairs:
        got = [(p.content, p.answer) for p in load(path, verifier="exact").prompts]
        assert got == list(dict.fromkeys(pairs))


def test_blank_lines_in_jsonl_are_no_rows_and_unusual_line_separators_are_text(write):
    task = load(write("rows.jsonl", '\n{"prompt": "a\u2028b", "answer": 1}\n\n  \n{"prompt": "c", "answer": 2}'))
    assert [p.content for p in task.prompts] == ["a\u2028b", "c"]


def test_skip_and_limit_count_rows_in_file_order_and_duplicates_are_kept_once(rows_file):
    path = rows_file(*({"prompt": text, "answer": "1"} for text in "aabcab"))
    assert [p.content for p in load(path).prompts] == ["a", "b", "c"]
    assert [p.content for p in load(path, skip=1, limit=2).prompts] == ["a", "b"]
    assert [p.content for p in load(path, skip=2).prompts] == ["b", "c", "a"]


def test_same_prompt_with_another_answer_is_another_prompt(rows_file):
    task = load(rows_file({"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "2"}))
    assert len({p.key for p in task.prompts}) == 2


def test_gym_is_reproducible_and_scored_by_its_own_verifier():
    pytest.importorskip("reasoning_gym")
    task = load("gym:chain_sum", options={"size": 5, "max_terms": 3})
    assert (task.name, task.verifier, len(task.prompts)) == ("gym:chain_sum", "gym", 5)
    assert task == load("gym:chain_sum", options={"size": 5, "max_terms": 3})
    other = load("gym:chain_sum", options={"size": 5, "seed": 9}, name="sums")
    assert not {p.key for p in task.prompts} & {p.key for p in other.prompts}
    verifier = resolve("gym")
    for prompt in other.prompts:
        assert prompt.columns["metadata"]["source_dataset"] == "chain_sum"
        assert judge(verifier, prompt, gold_completion("gym", prompt)).reward == 1.0
        assert judge(verifier, prompt, "no idea").reward < 0.1


@pytest.mark.parametrize("name", ["arc_agi", "rearc", "countdown", "graph_color"])
def test_gym_scores_survive_the_row_becoming_json(name):
    gym = pytest.importorskip("reasoning_gym")
    dataset = gym.create_dataset(name, size=3, seed=0)
    task = load(f"gym:{name}", options={"size": 3})
    verifier = resolve("gym")
    for prompt, entry in zip(task.prompts, dataset, strict=True):
        text = "no idea" if entry["answer"] is None else entry["answer"]
        assert judge(verifier, prompt, text).reward == dataset.score_answer(text, entry)


def test_skills_pass_split_and_options_on():
    task = load("skills", options={"skills": ["reverse"], "size": 3})
    assert (task.name, task.verifier, len(task.prompts)) == ("skills", "exact", 3)
    assert {p.columns["skill"] for p in task.prompts} == {"reverse"}
    assert all(isinstance(p.content, str) and isinstance(p.answer, str) for p in task.prompts)
    test = load("skills", split="test", options={"skills": ["reverse"], "size": 3})
    assert not {p.key for p in task.prompts} & {p.key for p in test.prompts}


def test_hub_datasets_get_name_split_and_options(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load("openai/gsm8k", split="test", options={"name": "main"})
    assert calls == [(("openai/gsm8k",), {"split": "test", "name": "main"})]
    assert (task.name, [p.answer for p in task.prompts]) == ("openai/gsm8k", ["2", "4"])


# Columns, templates, chat


def test_verl_rows_need_no_mapping(rows_file):
    chat = [{"role": "user", "content": "q"}]
    row = {
        "data_source": "countdown",
        "prompt": chat,
        "answer": "1 + 2",  # not what verl rewards
        "reward_model": {"ground_truth": {"target": 3}, "style": "rule"},
        "extra_info": {"index": 0},
    }
    (prompt,) = load(rows_file(row)).prompts
    assert (prompt.content, prompt.answer) == (chat, {"target": 3})
    assert prompt.columns == {key: value for key, value in row.items() if key != "prompt"}


@pytest.mark.parametrize("answer", ["answer", "final_answer", "ground_truth", "solution", "label", "target", "Answer"])
@pytest.mark.parametrize("prompt", ["prompt", "question", "problem", "instruction", "Question"])
def test_usual_column_names_need_no_mapping(rows_file, prompt, answer):
    (got,) = load(rows_file({"id": 7, prompt: "q", answer: "a"})).prompts
    assert (got.content, got.answer) == ("q", "a")
    assert got.columns == ({"id": 7} if answer == "answer" else {"id": 7, answer: "a"})  # TRL functions ask by name


def test_columns_map_names_and_dotted_paths(rows_file):
    row = {"prompt": "no", "answer": "no", "in": {"text": "q"}, "out": {"a.b": [1, 2]}, "x.y": "z"}
    path = rows_file(row)
    (got,) = load(path, columns={"prompt": "in.text", "answer": "x.y"}).prompts
    assert (got.content, got.answer) == ("q", "z")
    assert got.columns == row
    path = rows_file({"prompt": "q", "final_answer": ["first", "second"]})
    assert load(path, columns={"answer": "final_answer.1"}).prompts[0].answer == "second"
    with pytest.raises(InputError, match=r"no column 'final_answer.2'"):
        load(path, columns={"answer": "final_answer.2"})


def test_templates_and_chat(rows_file):
    path = rows_file({"Body": "Two and two.", "Question": "How many?", "meta": {"unit": "apples"}, "Answer": 4.0})
    template = "{Body} {Question} In {meta[unit]}, as \\boxed{{}}."
    text = "Two and two. How many? In apples, as \\boxed{}."
    user, system = {"role": "user", "content": text}, {"role": "system", "content": "Be terse."}
    contents = [
        load(path, prompt_template=template, **options).prompts[0].content
        for options in ({}, {"chat": True}, {"system_prompt": "Be terse."})
    ]
    assert contents == [text, [user], [system, user]]
    (prompt,) = load(path, prompt_template=template).prompts
    assert prompt.answer == 4.0
    assert set(prompt.columns) == {"Body", "Question", "meta", "Answer"}


def test_the_configured_system_prompt_stands_over_the_rows(rows_file):
    chat = [{"role": "system", "content": "old"}, {"role": "user", "content": "q", "name": "x"}]
    path = rows_file({"prompt": chat, "answer": "a"})
    assert load(path).prompts[0].content == chat
    assert load(path, system_prompt="new").prompts[0].content == [{"role": "system", "content": "new"}, chat[1]]


def test_functions_may_judge_rows_without_an_answer(rows_file):
    path = rows_file({"prompt": "a"}, {"prompt": "b", "answer": None})
    assert [p.answer for p in load(path, verifier="json:dumps").prompts] == [None, None]


# Third-party data


def third_party(*parts):
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def test_gsm8k():
    task = load(third_party("gsm8k", "train.jsonl"))
    assert len(task.prompts) == 7473
    assert task.prompts[0].content.startswith("Natalia sold clips to 48 of her friends")
    assert task.prompts[0].answer.endswith("#### 72")


def test_svamp_needs_a_template_only():
    task = load(third_party("svamp", "SVAMP.json"), prompt_template="{Body}. {Question}")
    assert 990 <= len(task.prompts) <= 1000
    assert task.prompts[0].content.startswith("Each pack of dvds costs 76 dollars. If there is a discount of 25")
    assert task.prompts[0].answer == 51.0
    for verifier in ("math", "numeric"):
        judged = resolve(verifier)
        assert all(judge(judged, p, gold_completion(verifier, p)).reward == 1.0 for p in task.prompts[:100])


def test_countdown():
    task = load(third_party("countdown", "uft_test.parquet"))
    assert len(task.prompts) == 1024
    first = task.prompts[0]
    assert first.content[0]["role"] == "user"
    assert first.answer == {"numbers": [47, 76, 55, 60], "target": 24}
    assert first.columns["data_source"] == "countdown"
    json.dumps([p.columns for p in task.prompts])


def test_deepscaler_subset_and_its_row_without_a_gold_answer():
    task = load(third_party("one_shot_rlvr", "dsr_sub.parquet"), limit=300)
    assert task.prompts[0].answer == r"\frac{3}{7}"
    verifier = resolve("math")
    verdicts = [judge(verifier, p, gold_completion("math", p)) for p in task.prompts]
    assert [p.answer for p, v in zip(task.prompts, verdicts, strict=True) if v.reward != 1.0] == [""]
    assert [v.error is None for v in verdicts].count(False) == 1
