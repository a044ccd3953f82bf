"""Take pictures of a run's report for the docs, at the widths of a desktop and a phone, in light and dark mode.

    python docs/report_pictures.py runs/demo    # rewrites docs/images/report-*.png

Needs the dev extra, and Chromium on the path.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from pacedrl.report.page import render

IMAGES = Path(__file__).resolve().parent / "images"
TALLEST = 3000
"""Maximum height of a picture in pixels; a whole page on a phone would be much longer."""
COLOURS = 128


def main() -> None:
    folder = Path(sys.argv[1])
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is not on the path (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        page = Path(temporary) / "report.html"
        page.write_text(render([folder]), encoding="utf-8")
        browser = driver.chromium.launch(executable_path=chromium)
        photograph(browser, page, "report-1280.png", 1280, "light", "#guide")
        photograph(browser, page, "report-390.png", 390, "dark", "#completions")
        photograph(browser, page, "completions-1280.png", 1280, "dark", "#guide", "#completions")
        browser.close()


def photograph(
    browser: Browser, page: Path, name: str, width: int, scheme: str, before: str, start: str = "body"
) -> None:
    """Take a picture of the page from ``start`` down to the section ``before``."""
    view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    view.goto(page.as_uri())
    view.wait_for_selector(".cb-row")
    view.add_style_tag(content=".toc { position: static !important }")
    top, end = (view.locator(at).bounding_box() for at in (start, before))
    assert top is not None
    assert end is not None
    height = min(end["y"] - max(top["y"], 0), TALLEST)
    area = {"x": 0, "y": max(top["y"], 0), "width": width, "height": height}
    taken = view.screenshot(full_page=True, clip=area)  # type: ignore[arg-type]
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS).save(IMAGES / name, optimize=True)
    view.close()


if __name__ == "__main__":
    main()
