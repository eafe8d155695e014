"""A dataset: its pictures and captions to read, filter and mend, and what the check of the data says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from nicegui import ui

from sdtune.serve.app import Server
from sdtune.serve.errors import ApiError
from sdtune.serve.web.frame import alarm, empty, facts, frame, icon_button, section, tag
from sdtune.serve.web.train_words import sentence, style
from sdtune.serve.work import Finding, SetPicture, SetReport, SetView

PAGE = 24
"""Pictures shown at once."""
PART = 200
"""Pictures asked for at once."""
MOST = 20_000
"""Pictures that the filter looks through."""
WRITERS = {"nobody": "", "human": "by a person", "sdtune": "by a captioner"}
POLICY = {
    "fail": ("stops a training", "bad"),
    "skip": ("left out", "open"),
    "warn": ("worth a look", "open"),
    "ignore": ("ignored", "soft"),
}


def add(server: Server) -> None:
    @ui.page("/train/data/{name}")
    async def page(name: str) -> None:
        style()
        try:
            found = server.work.set(name)
        except ApiError:
            with frame("No such dataset", "/train"):
                empty(
                    "There is no such dataset here",
                    "This server was started without its folder.",
                    "/train",
                    "Runs and datasets",
                )
            return
        with frame(found.title, "/train"):
            await DataPage(server, found).start()


async def listed(work: Any, name: str) -> list[SetPicture]:
    """All pictures of a set, up to MOST."""
    found = list[SetPicture]()
    while len(found) < MOST:
        part, total = await work.pictures(name, len(found), PART)
        found += part
        if not part or len(found) >= total:
            break
    return found


def filtered(pictures: Sequence[SetPicture], words: str) -> list[SetPicture]:
    """Those in whose name or captions every word stands; "-word": in which it does not."""
    wanted = words.lower().split()

    def fits(picture: SetPicture) -> bool:
        text = "\n".join([picture.name, *picture.captions]).lower()
        return all((w[1:] not in text) if w.startswith("-") and len(w) > 1 else w in text for w in wanted)

    return [picture for picture in pictures if fits(picture)]


class DataPage:
    def __init__(self, server: Server, found: SetView) -> None:
        self.work, self.set = server.work, found
        self.pictures: list[SetPicture] = []
        self._words, self._page = "", 0
        if not found.writable:
            tag("p", f"Captions can be read here, not changed: {found.why or 'this set is read-only.'}", "note notice")
        ui.link("Train with it", f"/train/new?data={quote(found.id)}").classes("go")
        with section("What the check says"):
            self.report = tag("div")
            with self.report:
                tag("p", "Looking at all pictures …", "note").props("role=status")
        with section("Pictures"):
            with tag("div", classes="tools"):
                box = ui.input("Filter by name or caption", on_change=lambda e: self._filter(e.value or ""))
                box.props("outlined dense clearable debounce=200 type=search").classes("find")
                self.count = tag("span", "", "note").props("role=status")
            self.grid = tag("ul", classes="set-pictures")
            with tag("div", classes="tools pager") as self.pager:
                self.back = ui.button("Before", icon="chevron_left", on_click=lambda: self._turn(-1)).props(
                    "outline no-caps"
                )
                self.at = tag("span", "", "note number")
                self.on = ui.button("Next", on_click=lambda: self._turn(1)).props(
                    "outline no-caps icon-right=chevron_right"
                )

    async def start(self) -> None:
        self.pictures = await listed(self.work, self.set.id)
        self._draw()
        ui.timer(0.1, self._check, once=True)

    async def _check(self) -> None:
        try:
            report = await self.work.set_report(self.set.id)
        except ApiError as error:
            self.report.clear()
            with self.report:
                alarm(error.message)
            return
        self.report.clear()
        with self.report:
            told(report)

    def _filter(self, words: str) -> None:
        self._words, self._page = words, 0
        self._draw()

    def _turn(self, by: int) -> None:
        self._page += by
        self._draw()
        ui.run_javascript("document.querySelector('.set-pictures').scrollIntoView({block: 'start'})")

    def _draw(self) -> None:
        shown = filtered(self.pictures, self._words)
        pages = max(1, -(-len(shown) // PAGE))
        self._page = max(0, min(self._page, pages - 1))
        self.count.text = (
            f"{len(shown):,} of {len(self.pictures):,} pictures" if self._words.strip() else f"{len(shown):,} pictures"
        )
        self.grid.clear()
        with self.grid:
            for picture in shown[self._page * PAGE : (self._page + 1) * PAGE]:
                Card(self, picture)
        self.pager.set_visibility(pages > 1)
        self.at.text = f"page {self._page + 1} of {pages}"
        self.back.set_enabled(self._page > 0)
        self.on.set_enabled(self._page < pages - 1)

    def replace(self, picture: SetPicture) -> None:
        self.pictures = [picture if p.n == picture.n else p for p in self.pictures]


class Card:
    """A picture with its captions, to be mended in place where the set can be written."""

    def __init__(self, page: DataPage, picture: SetPicture) -> None:
        self.page, self.picture = page, picture
        self._undo: list[list[str]] = []
        with tag("li", classes="set-picture card"):
            image = ui.element("img").props("loading=lazy decoding=async width=256 height=256")
            image.props["src"], image.props["alt"] = picture.href, picture.name
            with tag("div", classes="set-picture-name"):
                tag("code", picture.name)
                if page.set.writable:
                    self.said = tag("span", WRITERS[picture.by], "note").props("role=status")
                    self.undo = icon_button("undo", "Undo", self._back)
                    self.undo.set_visibility(False)
            if page.set.writable:
                self._editor()
            else:
                for caption in picture.captions or ["(no caption)"]:
                    tag("p", caption, "caption")

    def _editor(self) -> None:
        area = ui.textarea(value="\n".join(self.picture.captions)).props(
            'outlined dense autogrow hide-bottom-space placeholder="no caption"'
        )
        area.props["aria-label"] = f"Captions of {self.picture.name}, one a line"
        area.on("blur", lambda: self._save(area.value or ""))
        area.on("keydown.ctrl.enter", lambda: self._save(area.value or ""))
        self.area = area

    async def _save(self, text: str) -> None:
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        before = self.picture.captions
        if captions != before and await self._write(captions):
            self._undo.append(before)
            self.undo.set_visibility(True)

    async def _back(self) -> None:
        if self._undo and await self._write(self._undo[-1]):
            self._undo.pop()
            self.area.value = "\n".join(self.picture.captions)
            self.undo.set_visibility(bool(self._undo))
            self.said.text = "as before"

    async def _write(self, captions: list[str]) -> bool:
        try:
            self.picture = await self.page.work.write_captions(
                self.page.set.id, self.picture.n, captions, self.picture.name
            )
        except ApiError as error:
            self.said.text = f"not saved: {error.message}"
            self.said.classes(add="bad")
            return False
        self.said.text = "saved"
        self.said.classes(remove="bad")
        self.page.replace(self.picture)
        return True


# ---- findings


def told(report: SetReport) -> None:
    """A report for people: numbers, what stops a training first, and what to do about it."""
    sizes = ", ".join(f"{n:,} of {w} × {h}" for w, h, n in report.sizes[:3]) + (" …" if len(report.sizes) > 3 else "")
    rows = [
        ("To train on", f"{report.train:,} pictures"),
        ("Held out", f"{report.validation:,} pictures"),
        ("Layout", report.layout),
        ("Sizes", sizes),
    ]
    facts([(name, value) for name, value in rows if value])
    (alarm if report.stops else headline)(report.headline)
    order = list(POLICY)
    found = sorted(
        (f for f in report.findings if f.count),
        key=lambda f: order.index(f.policy) if f.policy in order else len(order),
    )
    if found:
        with tag("ul", classes="findings"):
            for finding in found:
                _finding(finding)
    if report.notes:
        with ui.expansion("Notes").classes("group"), tag("ul", classes="notes"):
            for note in report.notes:
                tag("li", note)


def headline(text: str) -> Any:
    return tag("p", text, "headline")


def _finding(finding: Finding) -> None:
    word, colour = POLICY.get(finding.policy, (finding.policy, "soft"))
    with tag("li"):
        with tag("div", classes="run-line"):
            tag("strong", f"{finding.count:,} × {finding.kind.replace('_', ' ')}")
            tag("span", word, f"state {colour}")
        tag("p", finding.what)
        if finding.remedy:
            tag("p", sentence(finding.remedy), "note")
        if finding.where:
            tag("code", ", ".join(finding.where[:4]) + (" …" if finding.count > 4 else ""))
