"""A run's log from its beginning, and on, for as long as a process writes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sdtune.events import Event, Finished, from_line
from sdtune.runs import Run


@dataclass(frozen=True)
class News:
    """What was logged since the last time."""

    events: tuple[Event, ...]
    anew: bool = False
    """The log was rewound, as it is when a stopped run goes on: these are its events from the first on."""


class Reader:
    """A run's log, read piece by piece. A last line without its end is left until it is whole."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._place = 0
        self._inode: tuple[int, int] | None = None

    def news(self) -> News:
        """What was logged since the last time; everything, if the log was rewound."""
        lines, anew = b"", False
        if self.run.events_file.exists():
            with self.run.events_file.open("rb") as file:
                here, size = _identity(file.fileno())
                anew = self._inode is not None and (here != self._inode or size < self._place)
                self._place, self._inode = 0 if anew else self._place, here
                file.seek(self._place)
                lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._place += len(whole)
        return News(tuple(from_line(line) for line in whole.decode("utf-8").splitlines() if line), anew)


def tail(
    run: Run, *, wait: bool = True, poll_s: float = 1.0, stop: Callable[[], bool] = lambda: False
) -> Iterator[News]:
    """What is there at once, then what comes, until the run has finished or nobody trains it, or `stop`. Without `wait`, what is there."""
    reader, last = Reader(run), None
    while True:
        living = run.living()  # asked first: what a process wrote before it ended is read below
        news = reader.news()
        last = news.events[-1] if news.events else last
        yield news
        if not wait or not living or isinstance(last, Finished) or stop():
            return
        time.sleep(poll_s)


def _identity(descriptor: int) -> tuple[tuple[int, int], int]:
    """Which file it is, and how long."""
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino), found.st_size
