"""The page and the verb that writes it: complete, self-contained, harmless and small."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from altered import grown, noisy, written

from pacedrl.cli import main
from pacedrl.report.page import SECTIONS, page, render
from pacedrl.report.run import RunLogs, load_run
from pacedrl.report.settings import changed_settings
from pacedrl.report.style import SERIES

HOSTILE = "<script>alert(1)</script>\"'&$x_1$\u202e\x1b[31m"


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return render([folder])


def test_sections_stand_in_order_and_links_lead_somewhere(text: str) -> None:
    elements = Elements(text)
    assert [attributes["id"] for attributes in elements.all("section")] == list(SECTIONS)
    ids = [attributes["id"] for _, attributes in elements.found if attributes.get("id")]
    assert len(set(ids)) == len(ids)
    targets = {attributes["href"] for attributes in elements.all("a")}
    assert {"#diagnosis", "#symptom-not-calibrated"} <= targets
    assert targets <= {f"#{id}" for id in ids}
    used = set(re.findall(r'xlink:href="#([\w-]+)"|url\(#([\w-]+)\)', text))
    assert {a or b for a, b in used} <= set(ids)


def test_there_is_one_svg_a_plot_which_says_what_it_shows(text: str) -> None:
    elements = Elements(text)
    figures = [attributes["id"] for attributes in elements.all("figure")]
    drawn = [attributes for attributes in elements.all("svg") if attributes.get("role") == "img"]
    assert len(figures) == len(drawn) >= 13
    assert {"plot-pass-1", "plot-pass-4", "plot-reliability", "plot-pool-0", "plot-replay-age", "plot-time"} <= set(
        figures
    )
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in drawn)
    assert "Nothing found." in text
    assert "KL to the initial policy.</b> Not drawn: it is logged only if" in text


def test_it_asks_nothing_of_the_network_and_runs_only_its_own_scripts(text: str) -> None:
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", text)
    assert not re.findall(r"@import|url\((?!#)", text)
    policy = next(a["content"] for a in Elements(text).all("meta") if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src" not in policy
    assert policy.count("sha256-") == text.count("<script>")


def test_colours_are_the_pages_own(text: str) -> None:
    body = text[text.index("<main>") :]
    left = set(re.findall(r"(?:stroke|fill): (#[0-9a-f]{6})", body))
    assert left == set()
    assert all(f"--s{i}:" in text for i in range(1, len(SERIES) + 1))


def test_hostile_names_and_settings_are_inert(run: RunLogs) -> None:
    config = run.config | {"model": {"name": HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    config["data"] = {"train": [{"source": HOSTILE}], "eval": HOSTILE}
    evals = [{name.replace("sort", HOSTILE): value for name, value in row.items()} for row in run.evals]
    samples = [{"step": 1, "error": HOSTILE}]
    errors = [row | {"verifier/errors": 60.0} for row in run.metrics]
    hostile = replace(run, name=HOSTILE, config=config, evals=evals, samples=samples, metrics=errors)
    other = replace(hostile, name="_" + HOSTILE, config=config | {"recipe": "grpo"})
    begun = replace(hostile, metrics=[], groups=[])  # its settings are listed too, and little is drawn
    for runs in ([begun], [hostile, other]):
        text = page(runs)
        text = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(1)" in text
        assert "\u202e" not in text
        assert "\x1b" not in text
        tags = {tag for tag, _ in Elements(text[: text.index("</main>")]).found}
        assert "script" not in tags


def test_several_runs_say_how_they_differ(seeds: list[Path], grpo: Path) -> None:
    text = render([*seeds, grpo])
    assert "Settings that differ" in text
    rows = re.findall(r'<tr><th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>', text)
    cells = {name: re.findall(r"<td>([^<]*)</td>", row) for name, row in rows}
    assert cells["objective.name"] == ["trajectory_balance", "trajectory_balance", "grpo"]
    assert cells["run.seed"] == ["0", "1", "0"]
    assert cells["recipe"] == ["paced", "paced", "grpo"]
    assert "sampling.group_size" not in cells
    assert text.count('class="headline"') == 3


def test_settings_that_differ_from_the_recipes(run: RunLogs, grpo: Path) -> None:
    for logs, steps in ((run, "12"), (load_run(grpo), "4")):
        changed = changed_settings(logs)
        assert changed["run.steps"] == [steps]
        assert changed["sampling.prompts_per_step"] == ["8"]
        assert "selection.method" not in changed  # as the recipe has it
        assert json.loads(changed["data.train"][0]) == [{"source": "skills", "options": {"size": 128}}]


def test_a_long_run_is_under_five_megabytes(run: RunLogs) -> None:
    text = page([noisy(grown(run, 1000))])
    assert len(text.encode()) < 5_000_000
    assert "mean over 51 steps" in text
    assert "Lines of over 400 steps are thinned out" in text


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


def test_the_verb_writes_the_page_and_says_the_diagnosis(
    folder: Path, grpo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert report(copy) == 0
    assert "<summary>" in (copy / "report.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("copy: ")
    assert said[1:] == ["  nothing found", f"Report: {copy / 'report.html'}"]
    assert (copy / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list(copy.glob("*.partial"))
    monkeypatch.chdir(tmp_path)
    assert report(copy, grpo) == 0
    assert "<title>2 runs" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == "Report: report.html"


def test_bad_input_is_one_line(folder: Path, tmp_path: Path, run: RunLogs, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert report(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "there is no such folder" in refused(tmp_path / "missing")
    assert "it has no config.yaml" in refused(tmp_path)
    empty = written(replace(run, metrics=[], evals=[], groups=[], samples=[]), tmp_path / "empty")
    assert "no step is finished yet" in refused(empty)
    assert "there is no folder" in refused(folder, "--out", tmp_path / "no" / "such.html")
    broken = written(run, tmp_path / "broken")
    (broken / "metrics.jsonl").write_text("nonsense\n" + (broken / "metrics.jsonl").read_text())
    assert "metrics.jsonl, line 1: expected a JSON object" in refused(broken)
    assert not (broken / "report.html").exists()
