"""The browser of completions, used in Chromium as a reader would."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pacedrl.report import plots
from pacedrl.report.completions import completions_json, outcome
from pacedrl.report.page import page as page_of
from pacedrl.report.page import render
from pacedrl.report.run import load_run

Row = dict[str, Any]
Visit = Callable[..., Any]

LISTED = """async () => {
  document.querySelector('.cb-main').style.height = '8000px'; // all rows are in sight
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [...document.querySelectorAll('[role=option]')].map((row) => Number(row.dataset.name.split(':').pop()));
}"""

CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(getComputedStyle(at).backgroundColor);
    return layers;
  };
  const found = [];
  const check = (element, style, text) => {
    const back = behind(element);
    const [a, b] = [over([...back, element.closest('svg') ? style.fill : style.color]), over(back)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    found.push([ratio / (large ? 3 : 4.5), `${text.trim().slice(0, 40)} (${element.className || element.tagName})`]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const shown = element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    if (walker.currentNode.data.trim() && shown) check(element, getComputedStyle(element), walker.currentNode.data);
  }
  for (const input of document.querySelectorAll('input[placeholder]')) {
    if (input.checkVisibility()) check(input, getComputedStyle(input, '::placeholder'), input.placeholder);
  }
  return found;
}"""


@pytest.fixture(scope="session")
def url(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the short run, on disk."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render([short_run]), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="session")
def rows(short_run: Path) -> list[Row]:
    return [json.loads(line) for line in (short_run / "samples.jsonl").read_text().splitlines()]


def numbers(rows: Sequence[Row], passes: Callable[[Row], bool] = lambda row: True) -> list[int]:
    """Return the lines in samples.jsonl (from 1) of the rows that pass, newest first, the browser's default order."""
    return sorted((n for n, row in enumerate(rows, 1) if passes(row)), key=lambda n: (-rows[n - 1]["step"], n))


def shown(page: Any, count: int, of: int) -> list[int]:
    """Return the lines in the list, once the page says that it has this many."""
    page.locator(f"[data-part=count]:text-is('{count} of {of} completions')").wait_for()
    listed: list[int] = page.evaluate(LISTED)
    return listed


def chosen(page: Any) -> int:
    """The line of the completion whose row is selected."""
    return int(page.locator("[role=option][aria-selected=true]").get_attribute("data-name").rpartition(":")[2])


def test_the_run_has_every_verdict(rows: list[Row]) -> None:
    assert {outcome(row) for row in rows} == {"right", "wrong", "between", "error"}


def test_the_page_opens_from_disk_with_plots_and_the_latest_completion(visit: Visit, url: str, rows: list[Row]) -> None:
    page = visit(url)
    assert page.locator("#plots svg, #plots img").count() >= 5
    assert shown(page, len(rows), len(rows)) == numbers(rows)
    first = rows[numbers(rows)[0] - 1]
    assert chosen(page) == numbers(rows)[0]
    assert page.locator("[data-part=completion]").inner_text() == first["completion"]
    assert page.locator("[data-part=prompt]").inner_text() == first["prompt"]
    assert f"Gold answer\n{first['answer']}" in page.locator("[data-part=verdict]").inner_text()


def test_filters_search_and_sorting_give_the_rows_of_the_log(visit: Visit, url: str, rows: list[Row]) -> None:
    page = visit(url)
    wanted = rows[30]
    key, digits = wanted["key"], wanted["prompt"][-4:-1]
    middle = sorted(row["accuracy_estimate"] for row in rows)[len(rows) // 2]
    cases: list[tuple[dict[str, str], Callable[[Row], bool]]] = [
        ({"reward": "right"}, lambda row: row["reward"] == 1),
        ({"reward": "wrong"}, lambda row: row["reward"] == 0),
        ({"reward": "between"}, lambda row: row["reward"] == 0.5),
        ({"reward": "none"}, lambda row: row["reward"] is None),
        ({"error": "failed"}, lambda row: row["error"] is not None),
        ({"error": "judged"}, lambda row: row["error"] is None),
        ({"finish": "stop"}, lambda row: row["finish_reason"] == "stop"),
        ({"task": rows[0]["task"]}, lambda row: row["task"] == rows[0]["task"]),
        ({"prompt": key}, lambda row: row["key"] == key),
        ({"prompt": "REVERSE:"}, lambda row: "reverse:" in row["prompt"]),
        ({"step-from": "3", "step-to": "5"}, lambda row: 3 <= row["step"] <= 5),
        ({"estimate-to": f"{middle:.6f}"}, lambda row: round(row["accuracy_estimate"], 6) <= round(middle, 6)),
        ({"search": digits}, lambda row: any(digits in row[name] for name in ("prompt", "completion", "answer"))),
        ({"search": ":", "reward": "right", "step-from": "4"}, lambda row: row["reward"] == 1 and row["step"] >= 4),
        ({"search": "no such thing"}, lambda row: False),
    ]
    for values, passes in cases:
        for name, value in values.items():
            field = page.locator(f"[name={name}]")
            field.select_option(value) if field.evaluate("e => e.tagName") == "SELECT" else field.fill(value)
        expected = numbers(rows, passes)
        assert shown(page, len(expected), len(rows)) == expected, values
        page.get_by_role("button", name="Reset").click()
        shown(page, len(rows), len(rows))
    by: dict[str, Callable[[Row], Any]] = {
        "oldest": lambda row: row["step"],
        "reward-low": lambda row: (row["reward"] is None, row["reward"]),
        "estimate-high": lambda row: -round(row["accuracy_estimate"], 6),
        "longest": lambda row: -len(row["completion"]),
    }
    for name, key_of in by.items():
        page.locator("[name=sort]").select_option(name)
        expected = sorted(range(1, len(rows) + 1), key=lambda n: (key_of(rows[n - 1]), n))
        assert shown(page, len(rows), len(rows)) == expected, name


def test_the_keyboard_does_it_all(visit: Visit, url: str, rows: list[Row]) -> None:
    page = visit(url)
    order = numbers(rows)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert chosen(page) == order[2]
    assert page.evaluate("document.activeElement.role") == "listbox"
    active = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    page.keyboard.press("k")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert chosen(page) == order[3]
    page.keyboard.press("End")
    assert chosen(page) == order[-1]
    page.keyboard.press("Home")
    assert chosen(page) == order[0]
    page.keyboard.press("/")
    page.keyboard.type("jk?:")  # typed, not obeyed
    assert page.evaluate("document.activeElement.name") == "search"
    assert page.locator("[name=search]").input_value() == "jk?:"
    assert shown(page, 0, len(rows)) == []
    assert not page.locator(".cb-detail").is_visible()
    page.keyboard.press("Escape")
    shown(page, len(rows), len(rows))
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.role") == "listbox"
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_the_address_names_a_completion(visit: Visit, url: str, rows: list[Row]) -> None:
    page = visit(f"{url}#completion=judged:17")
    assert page.locator("[data-part=completion]").inner_text() == rows[16]["completion"]
    page.locator("[name=reward]").select_option("right" if rows[4]["reward"] != 1 else "wrong")
    page.evaluate("location.hash = '#completion=judged:5'")
    shown(page, len(rows), len(rows))  # the filter would have hidden it
    assert chosen(page) == 5
    page.keyboard.press("j")
    following = numbers(rows)[numbers(rows).index(5) + 1]
    page.wait_for_url(f"{url}#completion=judged%3A{following}")
    page.evaluate("location.hash = '#completion=judged:9999'")
    page.locator("[data-part=count]:has-text('judged:9999 is not in this page')").wait_for()


HOSTILE = [
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    '<img src="x" onerror="window.pwned=1"><svg onload="window.pwned=1">',
    "<!--<script>",
    "\"' onmouseover='window.pwned=1' autofocus onfocus='window.pwned=1' x='",
    "${window.pwned=1}{{window.pwned=1}}<style>*{display:none}</style>",
    "<iframe src='javascript:parent.pwned=1'></iframe><form action='javascript:pwned=1'>",
    "a\u202egnp.exe\u2066b",
    "nul\x00 escape\x1b[31m bell\x07 delete\x7f next\x85 return\r",
    "zero\u200bwidth\u200d\ufeff soft\u00adhyphen tag\U000e0041",
    "lone \ud800 surrogate",
    "w" * 100_000,
    "Z" + "\u0301" * 3000,
    "שלום <b>עולם</b>",
    "line\n" * 400,
]
UNSEEN = {
    7: ["U+202E", "U+2066"],
    8: ["NUL", "ESC", "BEL", "DEL", "U+0085", "CR"],
    9: ["U+200B", "U+200D U+FEFF", "U+00AD", "U+E0041"],
    10: ["U+D800"],
    12: ["+2994 marks"],
}
"""Labels that are shown for invisible characters, by position in HOSTILE."""


def hostile_row(place: int, text: str) -> Row:
    chat = [{"role": text, "content": text}, {"role": "user", "content": text}]
    return {
        "step": place + 1,
        "key": text,
        "task": text,
        "prompt": text if place % 2 else chat,
        "completion": text,
        "reward": None if place % 3 == 0 else 1.0,
        "parts": {text: 0.25},
        "error": text if place % 3 == 0 else None,
        "finish_reason": text,
        "answer": text,
        "observed_accuracy": 0.5,
        "accuracy_estimate": 0.25,
    }


@pytest.fixture(scope="session")
def hostile_url(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run with a hostile name, prompts, completions and verdicts, and of a harmless run."""
    run = load_run(short_run)
    samples = [hostile_row(i, text) for i, text in enumerate(HOSTILE)]
    runs = [replace(run, name="".join(HOSTILE[i] for i in (1, 2, 7, 8)), samples=samples), replace(run, samples=[])]
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(page_of(runs), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_text_neither_runs_nor_breaks_the_page(visit: Visit, hostile_url: str, width: int) -> None:
    page = visit(hostile_url, width=width)
    page.locator("[name=sort]").select_option("oldest")
    page.locator("[role=listbox]").focus()
    page.keyboard.press("Home")
    for place, text in enumerate(HOSTILE):
        box = page.locator("[data-part=completion] .cb-box")
        assert box.get_attribute("dir") == "auto"
        said = box.evaluate("e => e.textContent")
        marks = page.locator("[data-part=completion] .cb-unseen").all_inner_texts()
        assert marks == UNSEEN.get(place, []), place
        if not marks:
            assert said == text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b-\u200f]", said)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
        sizes = page.evaluate("""() => {
          const detail = document.querySelector('.cb-detail').getBoundingClientRect();
          const rows = [...document.querySelectorAll('.cb-row')].map((row) => row.getBoundingClientRect().height);
          return { right: detail.right, height: detail.height, rows: [...new Set(rows)] };
        }""")
        assert sizes["rows"] == [46]
        assert sizes["right"] <= width
        assert sizes["height"] < 3000
        page.keyboard.press("j")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#completions :is(script:not(#completions-data), img, svg, iframe, style, b b)").count() == 0
    assert page.locator("[name=run] option").all_text_contents()[1].startswith("</script><script>window.pwned=1")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_wcag_aa_contrast(visit: Visit, url: str, scheme: str) -> None:
    page = visit(url, scheme=scheme)
    page.locator("[name=search]").fill("1")
    page.locator("[data-part=completion] mark, [data-part=prompt] mark").first.wait_for()
    page.get_by_role("button", name="Keys").click()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [text for ratio, text in found if ratio < 1] == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != (
        "rgb(255, 255, 255)" if scheme == "dark" else "rgb(0, 0, 0)"
    )


def test_a_phone_shows_it_without_scrolling_sideways(visit: Visit, url: str) -> None:
    page = visit(url, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("summary:has-text('Filters')").click()
    assert page.locator("[name=step-from]").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = page.evaluate(
        "['.cb-list', '[data-part=prompt]', '[data-part=completion]', '[data-part=verdict]']"
        ".map((part) => document.querySelector(part).getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)


def long_log(count: int) -> list[Row]:
    """Many rows with distinct prompts, which compress badly; every hundredth failed, every tenth was right."""
    return [
        {
            "step": i // 20 + 1,
            "key": f"{i:016x}",
            "task": "math",
            "prompt": f"what is {i}?",
            "completion": str((i * 0x9E3779B97F4A7C15F39CC0605CEDC835) ** 3),
            "reward": None if i % 100 == 0 else float(i % 10 == 1),
            "parts": {},
            "error": "no answer" if i % 100 == 0 else None,
            "finish_reason": "stop",
            "answer": str(i),
            "observed_accuracy": 0.1,
            "accuracy_estimate": (i % 97) / 97,
        }
        for i in range(count)
    ]


def test_a_long_log_is_chosen_from_and_the_page_says_so(
    visit: Visit, short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = completions_json({"long": long_log(20_000)}, 200_000)
    data = json.loads(text)
    assert 170_000 < len(data["gzip"]) <= 200_000
    assert data["errors"] == [200, 200]
    path = tmp_path / "long.html"
    monkeypatch.setattr("pacedrl.report.page.COMPLETIONS_BUDGET", 200_000)
    monkeypatch.setattr("pacedrl.report.page.all_plots", plots.held_out)  # the others take seconds
    path.write_text(page_of([replace(load_run(short_run), name="long", samples=long_log(20_000))]))
    page = visit(path.as_uri())
    assert page.locator(".cb-row").count() < 60
    note = page.locator("[data-part=note]").inner_text()
    assert f"This page holds {data['shown']:,} of the 20,000" in note
    assert "all 200 that the verifier failed on" in note

    def passing(**values: str) -> int:
        page.get_by_role("button", name="Reset").click()
        page.locator(f"[data-part=count]:has-text('{data['shown']:,} of {data['shown']:,}')").wait_for()
        for name, value in values.items():
            field = page.locator(f"[name={name.replace('_', '-')}]")
            field.select_option(value) if name == "reward" else field.fill(value)
        page.locator(f"[data-part=count]:not(:has-text('{data['shown']:,} of {data['shown']:,}'))").wait_for()
        return int(page.locator("[data-part=count]").inner_text().partition(" ")[0].replace(",", ""))

    assert passing(reward="right") == pytest.approx(passing(reward="wrong"), abs=1)
    assert passing(step_to="500") == pytest.approx(data["shown"] / 2, rel=0.02)
    assert passing(step_from="251", step_to="500") == pytest.approx(data["shown"] / 4, rel=0.04)


def test_a_budget_too_small_for_any_row_shows_none_and_says_so() -> None:
    assert '"shown": 0, "total": 3' in completions_json({"a": long_log(3)}, 100)
    assert json.loads(completions_json({"a": []}, 100))["total"] == 0


def test_a_chat_is_shown_with_its_tool_calls() -> None:
    call = {"function": {"name": "times", "arguments": {"a": 2}}}
    said: list[tuple[str, str | None]] = [
        ("user", "2 * 7?"),
        ("assistant", None),
        ("assistant", "Again."),
        ("tool", ""),
    ]
    chat = [
        {"role": role, "content": text} | ({"tool_calls": [call]} if role == "assistant" else {}) for role, text in said
    ]
    text = completions_json({"a": [{"prompt": chat}]}, 10_000)
    columns = json.loads(gzip.decompress(base64.b64decode(json.loads(text)["gzip"])))
    shown = columns["texts"][columns["prompt"][0]]
    assert shown == [
        ["user", "2 * 7?"],
        ["assistant", json.dumps([call])],
        ["assistant", f"Again.\n{json.dumps([call])}"],
        ["tool", ""],
    ]
