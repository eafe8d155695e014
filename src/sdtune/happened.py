"""What all records of what happened share: when it was, and how it is told to programs."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Happened:
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


def record(event: Happened) -> dict[str, Any]:
    """The event as plain JSON types, `event` naming the kind."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}
