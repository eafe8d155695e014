"""The choice of a dataset: title, a few pictures, how many there are, and what the check says of the chosen one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from nicegui import ui

from sdtune.serve.errors import ApiError
from sdtune.serve.web.frame import alarm, tag
from sdtune.serve.web.train_draft import Draft
from sdtune.serve.work import SetReport, SetView

THUMBS = 4
KEY = "data.path"


class Sets:
    """Cards to press; the chosen one's id stands in `data.path`."""

    def __init__(self, work: Any, draft: Draft, heard: Callable[[], None]) -> None:
        self.work, self.draft, self._heard = work, draft, heard
        tag("h3", "Dataset", "group-title").props('id="datasets"')
        self.cards: dict[str, Any] = {}
        self._places: dict[str, tuple[Any, Any]] = {}
        with tag("div", classes="cards sets-choice").props('role=group aria-labelledby="datasets"'):
            for found in work.sets():
                self._card(found)
        self.report = tag("div", classes="set-report").props("role=status")
        self._mark()
        ui.timer(0.1, self._fill, once=True)

    def _card(self, found: SetView) -> None:
        with tag("button", classes="pick").props("type=button") as card:
            tag("strong", found.title)
            thumbs = tag("span", classes="thumbs").props("aria-hidden=true")
            said = tag("span", "comes with sdtune" if found.shipped else "yours", "note")
        card.on("click", lambda: self._choose(found.id))
        self.cards[found.id], self._places[found.id] = card, (thumbs, said)

    async def _fill(self) -> None:
        for name, (thumbs, said) in self._places.items():
            try:
                pictures, total = await self.work.pictures(name, 0, THUMBS)
            except ApiError as error:
                said.text = error.message
                continue
            with thumbs:
                for picture in pictures:
                    image = ui.element("img").props('alt="" loading=lazy width=56 height=56')
                    image.props["src"] = picture.href
            said.text = f"{total:,} pictures · {said.text}"
        await self._check()

    def _mark(self) -> None:
        for name, card in self.cards.items():
            card.props["aria-pressed"] = "true" if name == self.draft.get(KEY) else "false"

    async def _choose(self, name: str) -> None:
        self.draft.put(KEY, name)
        self._mark()
        self._heard()
        await self._check()

    async def _check(self) -> None:
        name = self.draft.get(KEY)
        self.report.clear()
        if name not in self.cards:
            return
        with self.report:
            tag("p", "The pictures are being checked …", "note")
        await asyncio.sleep(0)
        try:
            report = await self.work.set_report(name)
        except ApiError as error:
            self.report.clear()
            with self.report:
                alarm(error.message)
            return
        if name == self.draft.get(KEY):
            self.report.clear()
            with self.report:
                self._told(name, report)

    @staticmethod
    def _told(name: str, report: SetReport) -> None:
        found = sum(f.count for f in report.findings if f.policy != "ignore")
        (alarm if report.stops else lambda text: tag("p", text, "note"))(
            f"{report.train:,} to train on, {report.validation:,} held out. {report.headline}"
        )
        ui.link("Pictures, captions" + (f" and {found:,} findings" if found else ""), f"/train/data/{name}")
