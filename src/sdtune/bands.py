"""The validation loss in bands of timesteps: at the clean end a model learns details, at the noisy end composition. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from sdtune.events import Validated
from sdtune.stats import MIN_UNITS, Interval, bootstrap_mean

NAMES = {2: ("clean", "noisy"), 3: ("clean", "middle", "noisy")}


@dataclass(frozen=True)
class BandChange:
    """The loss of one band of timesteps at two steps of a run, the same pictures and noise at both."""

    name: str
    first: int
    """The lowest and the highest of the fixed timesteps in the band."""
    last: int
    base: float
    now: float
    change: Interval
    """now - base, paired by picture."""

    @property
    def timesteps(self) -> str:
        return f"{self.first} to {self.last}" if self.first != self.last else str(self.first)

    @property
    def relative(self) -> tuple[float, float, float]:
        """The change and its bounds as shares of the base."""
        return tuple(v / self.base for v in (self.change.value, self.change.low, self.change.high))  # type: ignore[return-value]

    @property
    def verdict(self) -> Literal["lower", "higher", "cannot tell"]:
        """Told only where the interval excludes 0, and stands on enough pictures to be believed."""
        if self.change.n < MIN_UNITS:
            return "cannot tell"
        return "lower" if self.change.high < 0 else "higher" if self.change.low > 0 else "cannot tell"


def split(timesteps: int) -> list[slice]:
    """Fixed timesteps, clean first, cut into three bands as equal as can be (the outer ones alike); two of 2, none of fewer."""
    bands = min(max(NAMES), timesteps)
    edges = [round(i * timesteps / bands) for i in range(bands + 1)] if bands in NAMES else []
    return [slice(a, b) for a, b in pairwise(edges)]


def named(event: Validated) -> dict[str, tuple[float, ...]]:
    """The losses of the pictures by the names of the bands; nothing where a log is too old to tell."""
    return dict(zip(NAMES[len(event.per_band)], event.per_band, strict=True)) if event.per_band else {}


def changes(base: Validated, now: Validated) -> tuple[BandChange, ...]:
    """Band by band, clean first. Nothing where a log is too old to tell, or the two were measured on other pictures or timesteps."""
    tables = [np.array(e.per_band, np.float64) for e in (base, now)]
    if not base.per_band or tables[0].shape != tables[1].shape or base.timesteps != now.timesteps:
        return ()
    covers = [base.timesteps[s] for s in split(len(base.timesteps))]
    return tuple(
        BandChange(name, ts[0], ts[-1], float(a.mean()), float(b.mean()), bootstrap_mean(b - a))
        for name, ts, a, b in zip(NAMES[len(covers)], covers, *tables, strict=True)
    )
