"""`pacedrl judge` judges completions in files as in training and prints a summary."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from cli_process import CommandLine, eventually, tiny_run, workers_of

REWARDS = """
import time

def same(completions, answer):
    return [float(text == gold) for text, gold in zip(completions, answer)]

def half(completions):
    return [0.5]

def keyword(completions, keyword, **_):
    return [float(keyword[0] in completions[0])]

def picky(completions):
    if completions[0] == "raise":
        raise ValueError("no opinion")
    if completions[0] == "exit":
        raise SystemExit("not here")
    return [float(completions[0] == "fine")]

def chat(prompts, completions):
    return [float(completions[0][0]["content"] == "18" and prompts[0] == [{"role": "user", "content": "9+9?"}])]

def slow(completions):
    time.sleep(30)

def naps(completions):
    time.sleep(float(completions[0]))
    return [1.0]
"""
RIGHT = {"question": "9+9?", "answer": "18", "completion": r"So \boxed{18}."}
WRONG = {"question": "9+9?", "answer": "18", "completion": r"So \boxed{19}."}


def write(cli: CommandLine, *rows: dict[str, Any], name: str = "rows.jsonl") -> str:
    return cli.write(name, "".join(json.dumps(row) + "\n" for row in rows))


def rewards(cli: CommandLine, name: str = "verdicts.jsonl") -> list[float | None]:
    return [row["reward"] for row in cli.rows(name)]


def test_rows_get_verdicts_and_a_summary(cli: CommandLine) -> None:
    write(cli, RIGHT, WRONG, RIGHT, RIGHT | {"answer": {"x": 1}})
    result = cli("judge", "rows.jsonl", "--verifier", "math", "--out", "verdicts.jsonl", real=True)
    assert result.code == 0
    assert result.err == ""
    error = "the gold answer {'x': 1} is neither text nor a number; map columns.answer to one"
    assert cli.rows("verdicts.jsonl") == [
        {"row": 1, "reward": 1.0, "error": None},
        {"row": 2, "reward": 0.0, "error": None},
        {"row": 3, "reward": 1.0, "error": None},
        {"row": 4, "reward": None, "error": error},
    ]
    first, *rest = result.out.splitlines()
    assert re.fullmatch(r"4 rows by 'math' in \d+\.\d s, imports included: \d+ verdicts/s", first)
    assert rest == [
        "rewarded: 2 of 3 judged (66.7%), mean reward 0.667 (25% not judged)",
        "errors: 1, which have no reward",
        f"  1 × {error}",
    ]


def test_agreement_with_what_is_expected(cli: CommandLine) -> None:
    write(
        cli,
        RIGHT | {"expected": 1},
        RIGHT | {"expected": 0},
        WRONG | {"expected": False},
        WRONG | {"expected": True, "completion": "word " * 50 + r"\boxed{19}"},
        WRONG | {"expected": 0.5},
        RIGHT | {"expected": 1, "answer": []},
        RIGHT | {"expected": None},
    )
    result = cli("judge", "rows.jsonl", "--verifier", "math")
    assert result.code == 0
    lines = result.out.splitlines()
    table = [line.split() for line in lines if re.match(r" +(0|1|between) +\d", line)]
    assert table == [["0", "1", "1", "0"], ["between", "1", "0", "0"], ["1", "1", "1", "1"]]
    assert "as expected: 2 of 5 judged (40.0%)" in lines
    listed = lines[lines.index("as expected: 2 of 5 judged (40.0%)") + 1 :]
    assert listed[0] == r"  row 2: expected 0, got 1, answer '18', completion 'So \boxed{18}.'"
    assert listed[1].startswith("  row 4: expected 1, got 0, answer '18', completion '…ord word")
    assert listed[1].endswith(r"word \boxed{19}'")
    assert listed[2].startswith("  row 5: expected 0.5, got 0,")
    assert len(listed) == 3


def test_many_disagreements_and_errors_are_counted(cli: CommandLine) -> None:
    cli.write("mine.py", REWARDS)
    write(cli, *[{"completion": text, "expected": 1} for text in ["no"] * 30 + ["raise"] * 2 + ["exit", "fine"]])
    result = cli("judge", "rows.jsonl", "--verifier", "mine.py:picky", "--out", "-", "--workers", "1")
    assert [json.loads(line)["reward"] for line in result.out.splitlines()] == [0.0] * 30 + [None] * 3 + [1.0]
    said = result.err.splitlines()
    assert "  2 × ValueError: no opinion" in said
    assert "  1 × SystemExit: not here" in said
    assert "rewarded: 1 of 31 judged (3.2%), mean reward 0.032 (9% not judged)" in said
    assert said[-1] == "  and 10 more"
    assert sum("expected 1, got 0" in line for line in said) == 20


def test_a_verifier_that_training_would_refuse_is_named(cli: CommandLine) -> None:
    cli.write("signs.py", "def signs(completions):\n    return [1.0 if completions[0] == 'fine' else -1.0]\n")
    write(cli, {"completion": "fine"}, {"completion": "not"})
    result = cli("judge", "rows.jsonl", "--verifier", "signs.py:signs", "--out", "verdicts.jsonl")
    assert result.code == 0
    assert "rewarded: 1 of 1 judged (100.0%), mean reward 1.000 (50% not judged)" in result.out
    refusal = "training would refuse this verifier: "
    assert f"{refusal}task judge: signs.py:signs returned -1.0, but a reward lies in [0, 1]: scale it" in result.out
    assert rewards(cli) == [1.0, None]
    cli.write("mine.py", REWARDS)
    write(cli, {"completion": "raise"}, {"completion": "raise"})
    result = cli("judge", "rows.jsonl", "--verifier", "mine.py:picky")
    assert result.code == 0
    reason = "the verifier's commonest error: ValueError: no opinion"
    assert f"{refusal}none of 2 completions could be judged; {reason}" in result.out


@pytest.mark.parametrize("ending", ["jsonl.gz", "json", "csv", "parquet"])
def test_every_kind_of_file(cli: CommandLine, ending: str) -> None:
    rows = [RIGHT | {"expected": 1}, WRONG | {"expected": 1}, RIGHT | {"completion": "", "expected": 0}]
    path = cli.folder / f"rows.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "csv":
        path.write_text(
            "question,answer,response,expected\n" + 'q,18,"So \\boxed{18}.",true\nq,18,So \\boxed{19}.,1.0\nq,18,,0\n'
        )
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    result = cli("judge", path.name, "--verifier", "math", "--out", "verdicts.jsonl")
    assert result.code == 0, result.err
    assert rewards(cli) == [1.0, 0.0, 0.0]
    assert "as expected: 2 of 3 judged (66.7%)" in result.out


def test_rows_of_other_trainers_and_chats(cli: CommandLine) -> None:
    asked = [{"role": "user", "content": "9+9?"}]
    answered = [{"role": "assistant", "content": "18"}]
    verl = {"data_source": "x", "prompt": asked, "reward_model": {"ground_truth": "18"}, "answer": "other"}
    write(cli, verl | {"response": r"\boxed{18}"}, verl | {"response": r"\boxed{1}"})
    assert cli("judge", "rows.jsonl", "--verifier", "math", "--out", "verdicts.jsonl").code == 0
    assert rewards(cli) == [1.0, 0.0]
    cli.write("mine.py", REWARDS)
    for prompt in ("9+9?", asked):
        write(cli, {"prompt": prompt, "completion": answered}, {"prompt": prompt, "completion": answered})
        assert cli("judge", "rows.jsonl", "--verifier", "mine.py:chat", "--out", "verdicts.jsonl").code == 0
        assert rewards(cli) == [1.0, 1.0]


def test_a_verifier_reads_the_columns_it_names_and_needs_no_other(cli: CommandLine) -> None:
    cli.write("mine.py", REWARDS)
    write(cli, {"Output": "a cat", "keyword": "cat"}, {"Output": "a dog", "keyword": "cat"})
    assert cli("judge", "rows.jsonl", "--verifier", "mine.py:keyword", "--out", "verdicts.jsonl").code == 0
    assert rewards(cli) == [1.0, 0.0]
    write(cli, {"text": {"said": "18"}, "gold": "18", "q": "9+9?"})
    named = ["--columns", "completion=text.said", "answer=gold", "--columns", "prompt=q"]
    cli.write("module_of_judge.py", REWARDS)  # a name used only here, because modules stay imported from test to test
    assert cli("judge", "rows.jsonl", "--verifier", "module_of_judge:same", *named, "--out", "verdicts.jsonl").code == 0
    assert rewards(cli) == [1.0]


def test_options_limits_and_partial_rewards(cli: CommandLine) -> None:
    write(cli, RIGHT | {"completion": r"\boxed{1800\%}"}, RIGHT | {"completion": "It makes 18 in all"}, WRONG)
    options = ["--option", "percent=value", "last_number=true", "--limit", "2"]
    result = cli("judge", "rows.jsonl", "--verifier", "math", *options, "--out", "verdicts.jsonl")
    assert result.code == 0
    assert rewards(cli) == [1.0, 1.0]
    assert result.out.startswith("2 rows by 'math'")
    cli.write("mine.py", REWARDS)
    assert "mean reward 0.500" in cli("judge", "rows.jsonl", "--verifier", "mine.py:half").out


def test_the_samples_of_a_run_can_be_judged_again(cli: CommandLine) -> None:
    cli.write("c.yaml", tiny_run(run={"steps": 1}, eval={"every": 0}))
    assert cli("train", "c.yaml").code == 0
    result = cli("judge", "run/samples.jsonl", "--verifier", "exact", "--out", "verdicts.jsonl")
    assert result.code == 0, result.err
    assert rewards(cli) == rewards(cli, "run/samples.jsonl")


def test_home_folders_and_a_verifier_that_is_stuck(cli: CommandLine) -> None:
    cli.environment["HOME"] = str(cli.folder)
    cli.write("mine.py", REWARDS)
    write(cli, {"completion": "x"}, {"completion": "y"})
    words = ["--verifier", "~/mine.py:slow", "--timeout-s", "0.5", "--out", "~/verdicts.jsonl"]
    result = cli("judge", "~/rows.jsonl", *words)
    assert result.code == 0
    assert [row["error"] for row in cli.rows("verdicts.jsonl")] == ["timed out after 0.5 s"] * 2
    assert "errors: 2, which have no reward" in result.out
    assert "rewarded" not in result.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["openai/gsm8k"], "openai/gsm8k: no such file"),
        (["rows.jsonl", "--verifier", "mth"], "unknown verifier 'mth': did you mean 'math'?"),
        (["rows.jsonl", "--verifier", "mine.py:none"], "mine.py has no 'none'"),
        (["rows.jsonl", "--option", "percnt=value"], "no option 'percnt': did you mean 'percent'?"),
        (["rows.jsonl", "--option", "percent"], "--option: expected key=value, got 'percent'"),
        (["rows.jsonl", "--columns", "gold=answer"], "--columns: expected prompt=NAME, answer=NAME or completion=NAME"),
        (["rows.jsonl", "--columns", "completion=complete"], "rows.jsonl: line 1: no column 'complete'"),
        (["rows.jsonl", "--columns", "answer=gold"], "rows.jsonl: line 1: no column 'gold'"),
        (["rows.jsonl", "--limit", "0"], "--limit: expected more than 0, got 0"),
        (["rows.jsonl", "--workers", "-1"], "--workers: expected more than 0, got -1"),
        (["rows.jsonl", "--timeout-s", "nan"], "--timeout-s: expected more than 0, got nan"),
        (["rows.jsonl", "--out", "rows.jsonl"], "--out: 'rows.jsonl' is the file that is judged"),
        (
            ["rows.jsonl", "--out", "no/folder.jsonl"],
            "--out: cannot write 'no/folder.jsonl' (No such file",
        ),
        (["rows.jsonl", "--verifier", "code", "--timeout-s", "3"], "--timeout-s: 3 s is too little for the code of"),
        (["empty.jsonl"], "empty.jsonl: holds no rows; expected one completion per row"),
        (["no_completion.jsonl"], "no_completion.jsonl: line 1: no completion column (completion, response, "),
        (["number.jsonl"], "number.jsonl: line 2: the completion (column 'completion') is a int; expected text"),
        (["talk.jsonl"], "talk.jsonl: line 1: the completion (column 'completion') holds "),
        (["no_answer.jsonl"], "no_answer.jsonl: line 1: no answer column"),
        (
            ["expected.jsonl"],
            "expected.jsonl: line 1: column 'expected' holds 'Paris'; expected the reward",
        ),
        (["minus.jsonl"], "minus.jsonl: line 1: column 'expected' holds '-1'"),
        (["broken.jsonl"], "broken.jsonl: line 2: not valid JSON"),
    ],
)
def test_bad_input_is_one_line(cli: CommandLine, words: list[str], said: str) -> None:
    write(cli, RIGHT)
    cli.write("mine.py", REWARDS)
    cli.write("empty.jsonl", "")
    write(cli, {"question": "q", "answer": "a", "text": "t"}, name="no_completion.jsonl")
    write(cli, RIGHT, RIGHT | {"completion": 18}, name="number.jsonl")
    write(cli, RIGHT | {"completion": [{"role": "user", "content": "18"}]}, name="talk.jsonl")
    write(cli, {"question": "q", "completion": "18"}, name="no_answer.jsonl")
    write(cli, RIGHT | {"expected": "Paris"}, name="expected.jsonl")
    write(cli, RIGHT | {"expected": -1}, name="minus.jsonl")
    cli.write("broken.jsonl", json.dumps(RIGHT) + "\n{")
    verifier = [] if "--verifier" in words else ["--verifier", "math"]
    result = cli("judge", *words, *verifier)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert cli.rows("rows.jsonl") == [RIGHT]


def test_an_interrupt_keeps_what_was_judged(cli: CommandLine) -> None:
    cli.write("mine.py", REWARDS)

    write(cli, *[{"completion": "0"}] * 32, *[{"completion": "20"}] * 40)
    running = cli.start("judge", "rows.jsonl", "--verifier", "mine.py:naps", "--timeout-s", "60", "--out", "v.jsonl")
    written = cli.folder / "v.jsonl"
    assert eventually(lambda: written.exists() and len(cli.rows("v.jsonl")) == 32)
    assert workers_of(running.pid)
    running.interrupt()
    result = running.wait()
    assert result.code == 130
    assert result.err == "pacedrl: stopped after 32 of 72 rows\n"
    assert rewards(cli, "v.jsonl") == [1.0] * 32
    assert eventually(lambda: not workers_of(running.pid))
