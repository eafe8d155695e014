"""Create, grids and votes as people use them, in a real browser on the real server."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve.browser import Browser, browsing, faults, holds, shot
from tests.serve.conftest import Live, serving

pytestmark = pytest.mark.slow
HOSTILE = '<img src=x onerror="document.title=1"> a dog'


@pytest.fixture
def browser(live: Live) -> Iterator[Browser]:
    with browsing(str(live.http.base_url).rstrip("/")) as browser:
        yield browser


def draw(page: Any, prompt: str, **fields: str) -> None:
    """Fill the form and wait for the end."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in fields.items():
        page.get_by_label(name, exact=True).fill(value)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_text(re.compile("Done in")).wait_for(timeout=60_000)


def cut(page: Any) -> str:
    return str(page.locator(".slider").first.evaluate("e => e.style.getPropertyValue('--cut')"))


def test_a_newcomer_draws_with_both_and_slides_by_keyboard(live: Live, browser: Browser) -> None:
    page = browser.page("/ui/?model=lora")
    draw(page, "a red apple", Pictures="2")
    assert page.locator(".slider:visible").count() == 2
    page.locator(".slider input").first.focus()
    page.keyboard.press("End")
    assert cut(page) == "100%"
    page.get_by_label("Side by side").click()
    assert page.locator(".sides:visible").count() == 2
    assert faults(page) == []
    shot(page, "create-drawn")
    with page.expect_download() as got:
        page.get_by_role("link", name="Download tuned").first.click()
    newest = live.http.get("/api/pictures").json()["pictures"]
    files = [live.http.get(p["href"]).content for p in newest[:2]]
    assert Path(got.value.path()).read_bytes() in files


def test_what_was_drawn_and_what_was_written_survive_a_reload(browser: Browser) -> None:
    page = browser.page("/ui/?model=lora")
    draw(page, HOSTILE)
    before = page.locator(".thumb").count()
    page.goto(f"{browser.base}/ui/")
    page.get_by_text(re.compile("Done in")).wait_for()
    holds(page.get_by_label("Prompt", exact=True), HOSTILE)
    assert page.locator(".thumb").count() == before
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == "Create · sdtune"


def test_settings_are_taken_from_the_gallery_and_from_a_dropped_png(live: Live, browser: Browser) -> None:
    job = live.over(live.post(model="lora", prompt="a sailing boat", seeds=[4321], steps=3, guidance=2.5))
    page = browser.page("/ui/?model=full")
    page.get_by_role("button", name=re.compile("a sailing boat, seed 4321")).first.click()
    page.get_by_role("dialog").wait_for()
    assert faults(page, ".large") == []
    shot(page, "create-picture")
    page.get_by_role("button", name="Reuse settings").click()
    for name, value in (("Prompt", "a sailing boat"), ("Seed", "4321")):
        holds(page.get_by_label(name, exact=True), value)
    other = browser.page("/ui/?model=full")
    png = live.file(job["pictures"][0])
    data = other.evaluate_handle(
        """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
            return files;
        }""",
        list(png),
    )
    for event in ("dragover", "drop"):
        other.dispatch_event("#main", event, {"dataTransfer": data})
    other.get_by_text("The settings of a.png are in the form").wait_for()
    holds(other.get_by_label("Seed", exact=True), "4321")
    holds(other.get_by_label("Model", exact=True), re.compile("^lora"))


def test_a_painted_mask_is_where_the_picture_changes(live: Live, browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), (128, 128, 128)).save(file)
    page = browser.page("/ui/?model=model")
    page.get_by_role("button", name="Begin from a picture").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(str(file))
    page.get_by_role("button", name="Paint a mask").click()
    box = page.locator(".board canvas").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] / 4, steps=5)
    page.mouse.up()
    shot(page, "create-mask")
    page.get_by_role("button", name="Use this mask").click()
    page.get_by_alt_text("the mask").wait_for()
    draw(page, "noise")
    newest = live.http.get("/api/pictures").json()["pictures"][0]
    drawn = Image.open(io.BytesIO(live.file(newest))).convert("RGB")
    width, height = drawn.size
    assert {drawn.getpixel((x, height - 2)) for x in range(width)} == {(128, 128, 128)}
    assert drawn.getpixel((width // 2, height // 4)) != (128, 128, 128)


def test_wrong_values_and_wrong_files_are_said_and_lose_nothing(browser: Browser, tmp_path: Path) -> None:
    page = browser.page("/ui/?model=lora")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("alert").wait_for()
    assert "prompt" in page.get_by_role("alert").inner_text()
    file = tmp_path / "no.png"
    file.write_bytes(b"no picture")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Settings from a PNG").click()
    chooser.value.set_files(str(file))
    page.get_by_text(re.compile("no.png: not a PNG")).wait_for()


def test_a_waiting_job_is_cancelled(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder") as live, browsing(str(live.http.base_url).rstrip("/")) as browser:
        page = browser.page("/ui/?model=lora")
        page.get_by_label("Prompt", exact=True).fill("a dog")
        page.get_by_role("button", name="Draw", exact=True).click()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled").wait_for(timeout=60_000)


def test_a_grid_of_checkpoint_and_strength(live: Live, browser: Browser) -> None:
    page = browser.page("/ui/grid?model=lora")
    page.get_by_label("Prompt", exact=True).fill("a red apple")
    page.get_by_label("Values across").fill("0, 1")
    page.get_by_role("button", name="Draw the grid").click()
    page.get_by_text(re.compile("^4 pictures")).wait_for(timeout=60_000)
    assert page.get_by_role("rowheader").all_inner_texts() == ["step 2", "lora, result"]
    assert page.get_by_role("columnheader").all_inner_texts() == ["0", "1"]
    assert page.locator("td img").count() == 4
    assert faults(page) == []
    shot(page, "grid")
    sources = [i.get_attribute("src") for i in page.locator("td img").all()]
    base, tuned, _, last = (live.http.get(s).content for s in sources)
    records = [live.http.get(s.removesuffix("/file")).json()["record"] for s in sources]
    assert [r.get("tuned") for r in records] == [None, "lora@step-000002", None, "lora@final"]
    assert len({base, tuned, last}) == 3


def test_a_blind_vote_counts_for_the_side_that_was_chosen(runs: Path, tmp_path: Path) -> None:
    with serving(runs, tmp_path / "folder") as live, browsing(str(live.http.base_url).rstrip("/")) as browser:
        live.ready()
        page = browser.page("/ui/vote?model=lora")
        page.get_by_text("No pair is waiting").wait_for()
        page.get_by_label("Prompts, one a line").fill("a dog\na cat")
        page.get_by_role("button", name="Draw a pair of each").click()
        page.get_by_role("heading", name="Which shows better").wait_for(timeout=60_000)
        live.until(lambda: live.http.get("/api/jobs?state=done").json()["jobs"][1:])
        shot(page, "vote")
        assert faults(page) == []
        kinds = {p["id"]: p["kind"] for p in live.http.get("/api/pictures").json()["pictures"]}
        for _ in range(2):
            page.get_by_alt_text("left picture").wait_for()
            left = page.get_by_alt_text("left picture").get_attribute("src")
            page.keyboard.press("1" if kinds[left.split("/")[3]] == "tuned" else "2")
            page.wait_for_timeout(700)
        page.get_by_text("2 votes on 2 prompts").wait_for()
    from sdtune.serve.web.book import Book

    assert [v.choice for v in Book(tmp_path / "folder" / "web.sqlite").votes("lora")] == ["tuned", "tuned"]
