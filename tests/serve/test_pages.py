"""The pages as people use them, in a real browser on the real server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.browser import browsing, faults, shot, too_wide
from tests.serve.conftest import Live, serving

pytestmark = pytest.mark.slow
PAGES = ("/ui/", "/ui/grid", "/ui/vote", "/ui/train", "/ui/results", "/ui/status")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_is_accessible_and_fits(live: Live, width: int, dark: bool) -> None:
    with browsing(str(live.http.base_url).rstrip("/")) as browser:
        for path in PAGES:
            page = browser.page(path, width=width, dark=dark)
            page.wait_for_timeout(500)
            shot(page, f"{path.rpartition('/')[2] or 'create'}-{width}{'-dark' if dark else ''}")
            assert faults(page) == []
            assert too_wide(page) <= 0
            assert page.context.cookies() == []


def test_with_a_token_a_person_is_asked_for_it_and_the_page_lives(runs: Path, tmp_path: Path) -> None:
    token = "0123456789abcdef0123"
    file = tmp_path / "token"
    file.write_text(token)
    with serving(runs, tmp_path / "folder", "--token-file", str(file)) as live:
        address = str(live.http.base_url).rstrip("/")
        asked = live.http.get("/ui/", headers={"accept": "text/html"})
        assert asked.status_code == 401
        assert asked.headers["www-authenticate"].startswith("Basic")
        with browsing(address) as browser:
            page = browser.page("/ui/", http_credentials={"username": "me", "password": token})
            page.get_by_label("Tuned", exact=True).click()
            page.get_by_role("button", name="a red apple").click()  # answered by the server, over its WebSocket
            page.get_by_text("a red apple", exact=True).last.wait_for()
            assert page.get_by_label("Prompt", exact=True).input_value() == "a red apple"


def test_a_page_may_run_its_own_scripts_alone(live: Live) -> None:
    first, second = (live.http.get("/ui/status") for _ in range(2))
    policy = first.headers["content-security-policy"]
    (nonce,) = [part.partition("-")[2].rstrip("'") for part in policy.split() if part.startswith("'nonce-")]
    assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
    assert first.text.count("<script") == first.text.count(f'<script nonce="{nonce}"') > 5
    assert nonce not in second.text
    assert first.headers["cache-control"] == "no-store"
    assert "set-cookie" not in first.headers


def test_no_page_is_made_for_what_is_not_there(live: Live) -> None:
    assert live.http.get("/ui/nothing").status_code == 404
    assert live.http.get("/nothing").json()["error"]["code"] == "not_found"
    assert live.http.get("/", follow_redirects=False).headers["location"] == "/ui/"
