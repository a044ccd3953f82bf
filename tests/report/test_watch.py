"""Runs that are followed: the local page in Chromium, what the server refuses, and the dashboard in the terminal."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pacedrl.errors import InputError
from pacedrl.report import plots
from pacedrl.report.findings import diagnose
from pacedrl.report.live import LivePage, PageServer, serve
from pacedrl.report.run import load_run
from pacedrl.report.run_state import FILES, run_state, stamp
from pacedrl.report.terminal import BARS, dashboard, follow, held_out, sparkline

LOGS = FILES[1:]


@contextmanager
def serving(*folders: Path) -> Iterator[PageServer]:
    with serve(folders, interval_s=0.1) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    """Send a raw request and return the status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"127.0.0.1:{server.server_port}"} | headers).items():
        if value:
            connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode("utf-8")
    connection.close()
    return answer.status, body


def up_to(run: Path, folder: Path, step: int, half: bool = False) -> Path:
    """The run's folder as it was after this many steps; ``half``: with the next line of each log half-written."""
    folder.mkdir(exist_ok=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name in LOGS:
        lines = (run / name).read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        rest = lines[len(kept) :]
        partial = folder / f".{name}.partial"  # as rsync does it
        partial.write_text("".join(kept) + (rest[0][: len(rest[0]) // 2] if half and rest else ""))
        os.replace(partial, folder / name)
    return folder


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_page_follows_the_run_and_leaves_the_reader_alone(
    visit: Callable[..., Any], short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacedrl.report.page.all_plots", plots.held_out)  # the others take seconds
    folder = up_to(short_run, tmp_path / "synced", 4, half=True)
    with serving(folder) as server:
        page = visit(server.url)
        rows = rows_of(short_run, "samples.jsonl")
        right = {step: sum(row["reward"] == 1 and row["step"] <= step for row in rows) for step in (4, 8)}
        samples = {step: sum(row["step"] <= step for row in rows) for step in (4, 8)}
        page.locator("[name=reward]").select_option("right")
        page.locator(f"[data-part=count]:text-is('{right[4]} of {samples[4]} completions')").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        reading = page.locator("[role=option][aria-selected=true]").get_attribute("data-name")
        page.locator("#live:has-text('step 4 of 8')").wait_for()
        page.locator("#live").evaluate("e => { e.dataset.same = 'page' }")
        before = {name: page.locator(f"#{name}").inner_html() for name in ("diagnosis", "plots")}
        page.locator("#completions").evaluate("e => e.scrollIntoView({ behavior: 'instant' })")
        top = page.locator("#completions").bounding_box()["y"]

        up_to(short_run, folder, 8)
        page.locator("#live:has-text('finished: step 8 of 8')").wait_for()
        page.locator(f"[data-part=count]:text-is('{right[8]} of {samples[8]} completions')").wait_for()
        assert page.locator("#live").get_attribute("data-same") == "page"  # not loaded anew
        assert page.locator("[name=reward]").input_value() == "right"
        assert page.locator("[role=option][aria-selected=true]").get_attribute("data-name") == reading
        assert page.locator("#completions").bounding_box()["y"] == pytest.approx(top, abs=1)
        assert all(page.locator(f"#{name}").inner_html() != html for name, html in before.items())
        answer = json.loads(ask(server, "/stamp")[1])
        assert [(run["name"], run["state"]) for run in answer["runs"]] == [("synced", "finished")]


def test_nothing_but_the_page_is_served_and_to_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with serving(tmp_path / "run") as server:
        port = server.server_port
        assert ask(server, "/")[0] == ask(server, "/stamp")[0] == 200
        assert ask(server, "/", Host=f"localhost:{port}")[0] == 200
        for path in ("/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", str(tmp_path / "secret.txt"), "/?",
                     "/stamp/..", "/index.html", f"http://127.0.0.1:{port}/", "*", "\\..\\secret.txt"):  # fmt: skip
            code, body = ask(server, path)
            assert code == 404, path
            assert "secret" not in body
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1",
            f"127.0.0.1:{port + 1}",
            "127.0.0.1.evil.example",
            "",
        ):
            assert ask(server, "/stamp", Host=host)[0] == 403, host
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert ask(server, "/", method)[0] == 501
        assert server.server_address[0] == "127.0.0.1"
        for address in ("127.0.0.2", "::1"):  # the first is of this machine, too
            with pytest.raises(OSError, match=r"refused|unreachable|not supported|assign"):
                socket.create_connection((address, port), timeout=5)
        with pytest.raises(InputError, match=rf"--port: cannot listen on {port}"):
            serve([tmp_path], port)
    with pytest.raises(InputError, match="--port: cannot listen on 70000"):
        serve([tmp_path], 70000)


def test_a_folder_that_is_not_there_yet_is_waited_for(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacedrl.report.page.all_plots", plots.held_out)
    folder = tmp_path / "<b>late"
    page = LivePage([folder], interval_s=0.0)

    def said() -> str:
        time.sleep(0.02)  # the page is not built anew sooner than it takes to build
        return page.read()[1]

    first = said()
    assert "waiting for the folder" in first
    assert "<b>late" not in first
    folder.mkdir()
    assert "config.yaml" in said()
    (folder / "config.yaml").write_text("run: {steps: 8")  # half of it
    assert "config.yaml" in said()
    shutil.copy(short_run / "config.yaml", folder)
    waiting = said()
    assert "waiting for the first step" in waiting
    assert 'id="completions"' not in waiting
    up_to(short_run, folder, 2, half=True)
    assert said().count('id="completions"') == 1
    assert "waiting" not in page.states()[0].text


def test_the_page_is_built_only_when_asked_and_not_again_too_soon(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Sequence[Path]] = []

    def render(folders: Sequence[Path], live: bool = False) -> str:
        assert live
        built.append(folders)
        return f"page {len(built)}"

    monkeypatch.setattr("pacedrl.report.page.render", render)
    folder = up_to(short_run, tmp_path / "run", 2)
    page = LivePage([folder, tmp_path / "late"], interval_s=3600.0)
    first = page.stamp()
    assert built == []
    assert page.read() == (first, "page 1")
    assert page.read() == (first, "page 1")
    assert built == [[folder]]  # the other is not there yet
    up_to(short_run, folder, 4)
    assert stamp(page.folders) != first
    assert page.stamp() == first  # too soon
    assert page.read() == (first, "page 1")

    eager = LivePage([folder], interval_s=0.0)
    assert eager.read()[1] == "page 2"
    time.sleep(0.02)  # longer than that took
    assert eager.read()[1] == "page 2"
    up_to(short_run, folder, 6)
    assert eager.read() == (stamp([folder]), "page 3")


def test_a_status_says_how_far_a_run_is_and_whether_it_goes_on(short_run: Path, tmp_path: Path) -> None:
    folder = up_to(short_run, tmp_path / "run", 3, half=True)
    written = max((folder / name).stat().st_mtime for name in FILES)
    going = run_state(folder, written + 2)
    assert (going.name, going.state, going.step, going.steps) == ("run", "running", 3, 8)
    assert going.text.startswith("step 3 of 8, 2.0 s ago;")
    assert run_state(folder, written - 3600).text.startswith("step 3 of 8, 0.0 s ago;")  # another machine's clock
    stopped = run_state(folder, written + 3600)
    assert stopped.state == "stopped"
    assert "60 min ago" in stopped.text
    assert "it looks stopped" in stopped.text
    rows = rows_of(short_run, "metrics.jsonl")[:3]
    slow = [row | {"time/step": 600.0} for row in rows]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
    assert run_state(folder, written + 3600).state == "running"
    assert "10 min per step, about 50 min to go" in run_state(folder, written + 3600).text
    assert run_state(up_to(short_run, folder, 8), time.time()).state == "finished"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["run"] |= {"steps": 1000, "max_rollouts": rows_of(short_run, "metrics.jsonl")[-1]["rollouts/generated"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert run_state(folder, time.time()).state == "finished"


def test_a_stamp_changes_with_every_log(short_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    seen = [stamp([folder])]
    up_to(short_run, folder, 2)
    seen.append(stamp([folder]))
    assert stamp([folder]) == seen[-1]
    for name in LOGS:
        with (folder / name).open("a") as file:
            file.write("{")
        seen.append(stamp([folder]))
    assert len(set(seen)) == len(seen) == 6


def text_of(folders: Sequence[Path], width: int = 110, height: int = 50) -> str:
    console = Console(file=io.StringIO(), record=True, width=width)
    states = [run_state(folder, time.time()) for folder in folders]
    console.print(dashboard([(load_run(folder), state) for folder, state in zip(folders, states, strict=True)], height))
    return console.export_text()


def test_the_terminal_shows_the_figures_of_the_logs(short_run: Path, tmp_path: Path) -> None:
    text = text_of([short_run])
    metrics, samples = rows_of(short_run, "metrics.jsonl"), rows_of(short_run, "samples.jsonl")
    rewards = [row["reward/mean"] for row in metrics]
    (line,) = [line for line in text.splitlines() if line.startswith("│ reward ")]
    assert f"{rewards[-1]:.3f}  {min(rewards):.3f} to {max(rewards):.3f}" in line
    assert sparkline(rewards) in line
    last = metrics[-1]
    for label, shown in (
        ("accuracy, estimated", f"{last['accuracy/estimate_mean']:.3f}"),
        ("accuracy, observed", f"{last['accuracy/observed_mean']:.3f}"),
        ("mixed groups", f"{last['reward/mixed_groups']:.0%}"),
        ("entropy", f"{last['entropy']:.3f}"),
        ("truncated", f"{last['completion/truncated']:.0%}"),
        ("held-out pass@1", f"{held_out(rows_of(short_run, 'eval.jsonl'))[1][-1]:.3f}"),
    ):
        assert any(label in row and shown in row for row in text.splitlines()), label
    assert "finished: step 8 of 8" in text
    findings = diagnose(load_run(short_run))
    assert findings
    assert all(finding.text in " ".join(text.replace("│", "").split()) for finding in findings)
    assert samples[-1]["prompt"] in text
    assert max(map(len, text.splitlines())) <= 110
    folder = up_to(short_run, tmp_path / "bad", 8)
    evil = samples[-1] | {"completion": "a\x1b[2J\x1b]0;title\x07\u202eb[red]", "prompt": [{"content": "c\x9bd"}]}
    with (folder / "samples.jsonl").open("a") as file:
        file.write(json.dumps(evil | {"error": None}) + "\n")
    two = text_of([folder, short_run])
    assert not set(two) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert "a\\u001b[2J\\u001b]0;title\\u0007\\u202eb[red]" in two
    assert "c\\u009bd" in two


def test_sparklines_and_held_out_means() -> None:
    nan = float("nan")
    assert sparkline([0.0, 1.0, 2.0, 7.0]) == BARS[0] + BARS[1] + BARS[2] + BARS[7]
    assert sparkline([0.0, 0.0, nan, nan, 4.0, 10.0], width=3) == f"{BARS[0]} {BARS[7]}"
    assert sparkline([2.0, 2.0]) == BARS[0] * 2
    assert sparkline([]) == ""
    rows = [{"step": 0, "a/pass@2": 0.5, "b/pass@2": 0.25, "a/pass@8": 1.0, "b/pass@8": 1.0}]
    assert held_out(rows) == ("held-out pass@2", [0.375], ".3f")


def test_the_dashboard_is_printed_once_where_there_is_no_terminal(short_run: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=100, record=True)
    follow([short_run], console)
    assert "finished: step 8 of 8" in console.export_text()
    with pytest.raises(InputError, match="no such folder"):
        follow([tmp_path / "nowhere"], console)


def test_ctrl_c_ends_the_verb(short_run: Path) -> None:
    command = [sys.executable, "-m", "pacedrl.cli", "watch", str(short_run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == ""
    wrong = [sys.executable, "-m", "pacedrl.cli", "watch", __file__]
    done = subprocess.run(wrong, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is a file; watch needs the folder of a run" in done.stderr
