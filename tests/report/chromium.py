"""Fixtures of the tests of pages: a short run of the tiny model, and the Chromium that is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REWARD = """
def reward(prompts, completions, answer):
    def judge(text, gold):
        if text[:1] == "4":
            return None
        return 1.0 if text == gold else 0.5 if text[-1:] == gold[-1:] else 0.0

    return [judge(text, gold) for text, gold in zip(completions, answer)]
"""


@pytest.fixture(scope="session")
def short_run(train: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of eight steps, with completions that are right, wrong, in between, and not to be judged."""
    path = tmp_path_factory.mktemp("judged") / "reward.py"
    path.write_text(REWARD)
    task = {"source": "skills", "verifier": f"{path}:reward", "options": {"size": 64}}
    sampling = {"prompts_per_step": 12, "group_size": 4, "max_new_tokens": 8}
    return train("judged", run={"steps": 8, "samples_per_step": 12}, data={"train": [task]}, sampling=sampling)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests, which are skipped if there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open a page and wait for its completions; fail if it logs errors, opens dialogs or uses the network.

    What it did is in the page's ``complaints``.
    """
    pages: list[Any] = []

    def open_page(url: str, width: int = 1280, scheme: str = "light") -> Any:
        # With motion, a page may still scroll when a test measures where something is.
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce")
        page.complaints = []
        page.set_default_timeout(60_000)
        page.on("console", lambda message: page.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = url.partition("#")[0]
        page.on("request", lambda request: page.complaints.append(request.url) if own not in request.url else None)
        pages.append(page)
        page.goto(url)
        page.wait_for_selector(".cb-row")
        return page

    yield open_page
    for page in pages:
        complaints = page.complaints
        page.close()
        assert complaints == []
