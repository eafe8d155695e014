"""What happened to a job, for those who listen: kept until it is over, so that a listener who was cut off goes on where it was."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

LATEST = ("step", "preview", "busy")
"""Of these only the last is kept: older ones say nothing more."""
BOOT = secrets.token_hex(4)
"""Of this process: ids of an earlier one are not compared with its own."""


@dataclass(frozen=True)
class Said:
    number: int
    event: str
    data: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{BOOT}-{self.number}"


@dataclass
class Log:
    """The events of one job."""

    said: list[Said] = field(default_factory=list)
    over: bool = False
    watched: int = 0
    """Listeners to whom the job belongs: it ends when the last of them has left."""
    _count: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, event: str, data: dict[str, Any], *, last: bool = False) -> None:
        self._count += 1
        self.said = [s for s in self.said if s.event != event or event not in LATEST]
        if event == "picture":  # its preview is no news any more
            self.said = [s for s in self.said if s.event != "preview"]
        self.said.append(Said(self._count, event, data))
        self.over = self.over or last
        self._news.set()
        self._news = asyncio.Event()

    def after(self, number: int) -> list[Said]:
        return [s for s in self.said if s.number > number]

    async def listen(self, last_id: str = "", beat: float = 15.0) -> AsyncIterator[Said | None]:
        """What was said after `last_id`, then what is said, to the end; None every `beat` seconds of silence."""
        boot, _, number = last_id.partition("-")
        seen = int(number) if boot == BOOT and number.isdecimal() and len(number) < 12 else 0
        while True:
            news = self._news
            for said in self.after(seen):
                seen = said.number
                yield said
            if self.over and not self.after(seen):
                return
            if news is self._news:
                try:
                    await asyncio.wait_for(news.wait(), beat)
                except TimeoutError:
                    yield None
