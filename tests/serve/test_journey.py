"""The whole way of a newcomer, in a browser: train the embedded base, watch it, compare, draw with it, download, vote."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.serve.browser import browsing, shot
from tests.serve.conftest import serving

SETTINGS = (
    ("sample.seeds", "Seeds", "3"),
    ("sample.steps", "Steps", "3"),
    ("evaluate.seeds", "Seeds", "1"),
    ("evaluate.max_prompts", "Max prompts", "4"),
    ("evaluate.max_unrelated", "Max unrelated", "2"),
)
"""What makes it short: how they are found, their label, their value."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_newcomer_trains_compares_draws_and_votes(tmp_path: Path) -> None:
    with serving(Path("embedded"), tmp_path / "served", "--runs", str(tmp_path / "runs")) as live:
        address = str(live.http.base_url).rstrip("/")
        with browsing(address) as browser:
            page = browser.page("/ui/train/new")
            for label, text in {
                "Name": "mine",
                "Steps": "6",
                "Batch size": "2",
                "Prompts of the previews, one a line": "dog face",
            }.items():
                page.get_by_label(label, exact=True).fill(text)
            for words, label, text in SETTINGS:
                page.get_by_label("Find a setting").fill(words)
                found = page.locator(".new-all").get_by_label(label, exact=True).first
                found.fill(text)
                found.blur()
            page.get_by_text("evaluate.max_unrelated=2").wait_for()
            page.get_by_role("button", name="Start training").click()
            page.locator(".run-head .state", has_text=re.compile("^finished$")).wait_for(timeout=600_000)
            shot(page, "journey-trained")

            page.get_by_role("link", name="Compare").click()
            page.get_by_role("button", name="Compare now").click()
            page.get_by_role("button", name="Compare again").wait_for(timeout=600_000)
            page.get_by_text("Did it help?").first.wait_for()
            report = page.frame_locator("iframe").first
            page.locator("iframe").first.scroll_into_view_if_needed()
            report.get_by_role("heading", level=1).wait_for()
            shot(page, "journey-compared")

            page.goto(f"{address}/ui/?model=mine")
            page.get_by_role("button", name="dog face").click()
            page.get_by_role("button", name="Draw", exact=True).click()
            page.get_by_text(re.compile("Done in")).wait_for(timeout=120_000)
            with page.expect_download() as got:
                page.get_by_role("link", name="Download tuned").click()
            with Image.open(io.BytesIO(Path(got.value.path()).read_bytes())) as picture:
                assert picture.size == (64, 64)
                assert "mine@final" in str(picture.info["sdtune"])

            page.get_by_role("link", name="Blind vote").click()
            page.get_by_role("heading", name="Which shows better: dog face").wait_for()
            page.keyboard.press("1")
            page.get_by_text("1 vote on 1 prompt").wait_for()
