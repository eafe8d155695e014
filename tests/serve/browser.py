"""A real browser on the real server: pages are used as people use them, looked over by axe-core, and photographed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
SHOTS = Path(os.environ.get("SDTUNE_SHOTS", "build/screenshots"))
"""What CI keeps."""
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SERIOUS = ("serious", "critical")


class Browser:
    """Playwright's browser, and what its pages asked for and complained of."""

    def __init__(self, browser: Any, base: str) -> None:
        self._browser, self.base = browser, base
        self.complaints: list[str] = []

    def page(self, path: str, *, width: int = 1280, height: int = 900, dark: bool = False, **options: Any) -> Any:
        """A page in a context of its own, once it answers to people. `base` and `path` make its address."""
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            **options,
        )
        page = context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)
        page.goto(self.base + path)
        page.get_by_role("heading", level=1).wait_for()
        return page

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not re.match(rf"(data:|blob:|(http|ws){re.escape(self.base[4:])}/)", request.url):
            self.complaints.append(f"asked a foreign host: {request.url}")


@contextmanager
def browsing(base: str, *arguments: str) -> Iterator[Browser]:
    """Skips without a browser; `arguments` are further ones of Chromium.

    At the end no page may have complained, or asked another host for anything.
    """
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *arguments])
        browser = Browser(opened, base)
        yield browser
        opened.close()
    assert browser.complaints == []


def shot(page: Any, name: str) -> Path:
    """The whole page as a picture for people."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = SHOTS / f"{name}.png"
    page.screenshot(path=str(path), full_page=True)
    return path


def faults(page: Any, dialog: str | None = None) -> list[str]:
    """What axe-core calls serious or critical on the page, or in the dialog that a selector names.

    In a dialog of Quasar's it takes the page behind for the background of texts: contrast is looked at on pages alone, which have the
    same colours.
    """
    from axe_playwright_python.sync_playwright import Axe

    page.wait_for_timeout(400)  # what fades in has less contrast on its way
    found = Axe().run(page, context=dialog).response["violations"]
    return [
        f"{v['id']}: {node['html'][:160]} ({node['failureSummary'][:160]})"
        for v in found
        if v["impact"] in SERIOUS and not (dialog and v["id"] == "color-contrast")
        for node in v["nodes"]
    ]


def too_wide(page: Any) -> int:
    """Pixels that the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def holds(field: Any, value: str | re.Pattern[str]) -> None:
    """A field has, or soon gets, this value."""
    from playwright.sync_api import expect

    expect(field).to_have_value(value)
