"""The pages as people use them, in a real browser on the real server."""

from __future__ import annotations

import pytest

from tests.serve.browser import browsing, faults, shot, too_wide
from tests.serve.conftest import Live

pytestmark = pytest.mark.slow
PAGES = ("/ui/", "/ui/train", "/ui/results", "/ui/status")


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
