"""What an experiment reports while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sdtune.happened import Happened
from sdtune.happened import record as record

State = Literal["finished", "to compare", "begun", "missing", "failed"]
"""Of a run: compared as the matrix says; trained only; trained in part; nothing yet; given up with an error."""


@dataclass(frozen=True)
class Planned(Happened):
    """What there is and what is to do. `states` counts runs."""

    out: str
    cells: int
    runs: int
    states: Mapping[State, int]
    todo: int
    """Runs that this experiment will work on."""
    seconds: float | None
    """How long that will take, by those that are finished; None if none is."""


@dataclass(frozen=True)
class Began(Happened):
    """Work on a run begins: the `number`-th of `todo`."""

    cell: str
    seed: int
    run: str
    number: int
    todo: int
    device: str


@dataclass(frozen=True)
class Worked(Happened):
    """A run is at `done` of `total` of `what`; `share` of all its work is done."""

    cell: str
    seed: int
    what: str
    done: int
    total: int
    share: float
    seconds_left: float | None
    """Of the whole experiment."""


@dataclass(frozen=True)
class Told(Happened):
    """A warning of a run."""

    cell: str
    seed: int
    message: str


@dataclass(frozen=True)
class Made(Happened):
    """A run is trained and compared."""

    cell: str
    seed: int
    run: str
    seconds: float
    headline: str
    seconds_left: float | None


@dataclass(frozen=True)
class Broke(Happened):
    """A run could not be made; the others go on."""

    cell: str
    seed: int
    message: str


@dataclass(frozen=True)
class Ranked(Happened):
    """The page was written, of all that there is so far."""

    page: str
    runs: int
    missing: int
    best: str
    """The first group of the leaderboard, in words."""
    sheet: str = ""
    """Pictures of all rows side by side, a PNG."""


Event = Planned | Began | Worked | Told | Made | Broke | Ranked


def plain(event: Event) -> dict[str, Any]:
    """For programs."""
    return record(event)
