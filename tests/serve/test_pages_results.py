"""The pages Results and Status as people use them, in a real browser on the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.browser import Browser, browsing, faults, shot, too_wide
from tests.serve.conftest import Live, serving
from tests.serve.sights import BAD, GOOD, compared_run, experiment, finished_run

pytestmark = pytest.mark.slow
PAGES = (
    "results",
    "results/run/good",
    "results/run/plain",
    "results/experiment/ranks",
    "results/beside/good/bad",
    "results/run/nobody",
    "status",
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server on runs of every kind; the original can draw, the runs have no weights."""
    folder = tmp_path_factory.mktemp("shown")
    compared_run(folder / "sights" / "good", GOOD)
    compared_run(folder / "sights" / "bad", BAD, change=0.5)
    finished_run(folder / "sights" / "plain")
    experiment(folder / "sights" / "ranks")
    with serving(folder / "sights", folder / "folder") as live:
        yield live.ready()


@pytest.fixture
def browser(shown: Live) -> Iterator[Browser]:
    with browsing(str(shown.http.base_url).rstrip("/")) as browser:
        yield browser


def rows_of(page: Any) -> list[str]:
    return [cell.inner_text().split("\n")[0] for cell in page.locator("tbody th.name").all()]


def forgive(browser: Browser) -> None:
    """What the browser says of a report that tried what it must not."""
    refused = ("Content Security Policy", "sandbox", "Failed to fetch", "Refused to connect")
    browser.complaints[:] = [c for c in browser.complaints if not any(words in c for words in refused)]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_is_accessible_and_fits(browser: Browser, width: int, dark: bool) -> None:
    for path in PAGES:
        page = browser.page(f"/ui/{path}", width=width, dark=dark)
        page.wait_for_timeout(300)
        shot(page, f"{path.replace('/', '-')}-{width}{'-dark' if dark else ''}")
        assert faults(page) == [], path
        assert too_wide(page) <= 0, path
        assert page.context.cookies() == []
        forgive(browser)


def test_runs_are_sorted_and_two_are_held_against_each_other(browser: Browser) -> None:
    page = browser.page("/ui/results")
    assert set(rows_of(page)) == {"good", "bad", "plain"}
    for column, first in (("What came out", "good"), ("Figure that decides", "good"), ("Run", "bad")):
        page.get_by_role("button", name=column, exact=True).click()
        page.locator(f"th[aria-sort=ascending] >> text={column}").wait_for()
        assert rows_of(page)[0] == first
    page.get_by_role("button", name="Run", exact=True).click()
    page.locator("th[aria-sort=descending]").wait_for()
    assert rows_of(page)[-1] == "bad"
    assert page.get_by_role("button", name="Show two beside each other").is_disabled()
    for name in ("good", "bad"):
        page.get_by_role("checkbox", name=f"Choose {name}").click()
    page.get_by_role("button", name="Show two beside each other").click()
    page.get_by_role("heading", name="Beside each other").wait_for()
    assert page.locator("ul.trios img").count() == 6
    decoded = (
        "Promise.all([...document.querySelectorAll('ul.trios img')].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    sizes = page.evaluate(decoded)
    assert sizes == [32] * 6
    assert page.get_by_role("img", name="a blue <b>dog</b>, by base").count() == 1  # a stranger's words are text
    assert "no fair comparison" not in page.inner_text("main")


def test_runs_of_experiments_are_shown_when_asked_for(browser: Browser) -> None:
    page = browser.page("/ui/results")
    page.get_by_role("switch", name="Runs of experiments, too (3)").click()
    page.get_by_role("link", name="ranks, r2, seed 0").wait_for()
    assert len(rows_of(page)) == 6


def test_a_report_is_opened_in_its_place_and_is_alone_there(browser: Browser) -> None:
    page = browser.page("/ui/results/run/good")
    inside = page.frame_locator("iframe[title='Report of good']")
    inside.get_by_role("heading", name="Report of good").wait_for()
    inside.get_by_text("the script ran, no cookies, no server").wait_for()
    forgive(browser)
    page.get_by_role("link", name="Vote").click()
    page.frame_locator("iframe[title='Vote of good']").get_by_role("heading", name="Report of vote on good").wait_for()
    forgive(browser)
    page.get_by_role("link", name="Timeline").click()
    page.get_by_role("img", name="Timeline of good").wait_for()
    with page.expect_download() as got:
        page.get_by_role("link", name="Download").click()
    assert got.value.suggested_filename == "good-timeline.png"


def test_a_run_shows_answers_in_words_and_its_figures(browser: Browser) -> None:
    page = browser.page("/ui/results/run/bad")
    assert page.locator(".headline.bad").inner_text() == "bad says <i>so</i>."
    assert "✗ no" in page.locator("li", has_text="Did it help?").inner_text()
    page.get_by_text("All 2 figures").click()
    assert "+0.500" in page.locator("table.figures").inner_text()
    plain = browser.page("/ui/results/run/plain")
    assert "Not compared with its base yet" in plain.inner_text("main")
    assert plain.get_by_role("img", name="Timeline of plain").count() == 1
    forgive(browser)


def test_a_run_that_is_new_appears_by_itself(browser: Browser, shown: Live) -> None:
    page = browser.page("/ui/results")
    sights = Path(shown.log).parent / "sights"
    compared_run(sights / "later", GOOD)
    page.get_by_role("link", name="later").wait_for(timeout=15000)


def test_an_experiment_has_its_leaderboard_and_its_grid(browser: Browser) -> None:
    page = browser.page("/ui/results")
    page.get_by_role("link", name="ranks", exact=True).click()
    page.frame_locator("iframe").get_by_role("heading", name="Report of leaderboard").wait_for()
    cells = page.locator("tbody tr").all_inner_texts()
    assert "seed 1failed" in cells[1].replace("\n", "").replace(" failed", "failed") and "to compare" in cells[1]
    page.get_by_role("link", name="Grid").click()
    page.get_by_role("img", name="Grid of ranks").wait_for()
    assert page.get_by_role("link", name="seed 0").first.get_attribute("href") == "/ui/results/run/ranks-r2-seed-0"
    forgive(browser)


def test_a_job_is_followed_and_cancelled_by_keyboard(browser: Browser, shown: Live) -> None:
    page = browser.page("/ui/status")
    page.get_by_text("Nothing is drawn, nothing waits.").wait_for()
    names = [shown.post(model="embedded", steps=150, seeds=list(range(16)), prompt=f"job {i}") for i in range(3)]
    page.get_by_text("Place 2").wait_for()
    page.get_by_text("step ", exact=False).first.wait_for()
    buttons = page.get_by_role("button", name="Cancel: 16 pictures with embedded")
    assert buttons.count() == 3
    buttons.nth(2).focus()
    page.wait_for_timeout(1500)  # what is live does not take the focus away
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('ul.jobs li.job').length == 2")
    assert shown.job(names[2])["state"] == "cancelled"
    for name in names[:2]:
        shown.http.delete(f"/api/jobs/{name}")
    page.get_by_text("Nothing is drawn, nothing waits.").wait_for()


def test_a_failed_job_stands_there_with_its_reason(browser: Browser, shown: Live) -> None:
    name = shown.post(model="good")
    assert shown.over(name)["state"] == "failed"
    page = browser.page("/ui/status")
    page.get_by_text(name, exact=False).wait_for()
    assert "expected one .safetensors adapter" in page.locator("li .bad").first.inner_text()


def test_a_worker_that_is_killed_and_a_full_queue_are_said(shown: Live, tmp_path: Path) -> None:
    sights = Path(shown.log).parent / "sights"
    with (
        serving(sights, tmp_path / "folder", "--queue", "1") as live,
        browsing(str(live.http.base_url).rstrip("/")) as browser,
    ):
        page = browser.page("/ui/status")
        page.get_by_text("the model is being loaded", exact=False).wait_for()
        live.ready()
        page.locator(".pill", has_text="ready").wait_for()
        live.post(model="embedded", steps=150, seeds=list(range(16)))
        page.locator(".pill", has_text="drawing").wait_for()
        live.post(model="embedded")
        page.get_by_role("alert").filter(has_text="The queue is full").wait_for()
        shot(page, "status-full")


def test_an_example_is_copied(browser: Browser, shown: Live) -> None:
    page = browser.page("/ui/status", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the example of sdtune's own").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()").startswith(f"curl -s {shown.http.base_url}".rstrip("/"))
