"""What all pages share: they load nothing, run no script but their own, and their pictures enlarge."""

import base64
import hashlib
import re
from importlib import resources

import pytest

from sdtune import pages

ASSETS = resources.files("sdtune") / "report_assets"
TEMPLATES = {
    p.name.partition(".")[0]: p.read_text(encoding="utf-8") for p in ASSETS.iterdir() if p.name.endswith(".j2")
}
POLICY = '<meta http-equiv="Content-Security-Policy" content="{{ policy }}">'
SCRIPT = "<script>{{ js | safe }}</script>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_page_that_shows_pictures_enlarges_them(name: str) -> None:
    """Or is named among those that do not; and it has the policy of `pages.page`."""
    text = TEMPLATES[name]
    assert POLICY in text and "<img" in text
    assert (SCRIPT in text) == (name not in pages.STILL or name == "vote")
    assert "<main" in text, "zoom.js looks there"


def test_the_reports_are_such_pages() -> None:
    assert set(TEMPLATES) - set(pages.STILL) == {"experiments", "protocol", "report", "show", "sweep"}
    assert set(pages.STILL) < set(TEMPLATES)


@pytest.mark.parametrize("name", ["report", "vote", "check"])
def test_the_browser_runs_that_script_and_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pages.asset
    short = "<img>{{ policy }}" + ("" if name == "check" else SCRIPT)
    monkeypatch.setattr(pages, "asset", lambda asset: short if asset.endswith(".j2") else real(asset))
    made = pages.page(name, **({} if name == "check" else {"js": "let own = 'é';\n"}))
    scripts = re.findall("<script>(.*?)</script>", made, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']*)'", made.replace("&#39;", "'")) == hashes
    assert len(scripts) == (name != "check") and all("let own" in s for s in scripts)
    assert (real("zoom.js") in made) == (name == "report")
    assert "unsafe-inline" not in made.partition("script-src")[2]
