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


def tail(
    run: Run, *, wait: bool = True, poll_s: float = 1.0, stop: Callable[[], bool] = lambda: False
) -> Iterator[News]:
    """What is there at once, then what comes, until the run has finished or nobody trains it, or `stop`. Without `wait`, what is there.

    A last line without its end is left until it is whole.
    """
    place, inode, last = 0, None, None
    while True:
        living = run.living()  # asked first: what a process wrote before it ended is read below
        lines, anew = b"", False
        if run.events_file.exists():
            with run.events_file.open("rb") as file:
                here, size = _identity(file.fileno())
                anew = inode is not None and (here != inode or size < place)
                place, inode = 0 if anew else place, here
                file.seek(place)
                lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        place += len(whole)
        events = tuple(from_line(line) for line in whole.decode("utf-8").splitlines() if line)
        last = events[-1] if events else last
        yield News(events, anew)
        if not wait or not living or isinstance(last, Finished) or stop():
            return
        time.sleep(poll_s)


def _identity(descriptor: int) -> tuple[tuple[int, int], int]:
    """Which file it is, and how long."""
    found = os.fstat(descriptor)
    return (found.st_dev, found.st_ino), found.st_size
