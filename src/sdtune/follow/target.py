"""What every tool that a run is followed to can do."""

from __future__ import annotations

import hashlib
import socket
from abc import ABC, abstractmethod
from typing import Any, Literal

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import SdtuneError
from sdtune.follow.records import Note, Picture, Scalars
from sdtune.runs import Run

PROJECT = "sdtune"
"""The project or experiment that runs are put into."""
Outcome = Literal["finished", "failed", "stopped", "running"]


class Target(ABC):
    """One run in another tool. Made anew, it replaces what was sent of the run before."""

    where: str
    view: str
    """The command that shows it."""

    @abstractmethod
    def scalars(self, record: Scalars) -> None: ...

    @abstractmethod
    def picture(self, record: Picture) -> None: ...

    @abstractmethod
    def note(self, record: Note) -> None: ...

    @abstractmethod
    def flush(self) -> None:
        """Nothing more is there for now: send what was kept back."""

    @abstractmethod
    def close(self, outcome: Outcome) -> None: ...


def identity(run: Run) -> str:
    """The run's name in stores that want one of its own: the same each time it is followed, another for any other run."""
    first = next(iter(run.events()), None)
    text = f"{socket.gethostname()} {run.path.resolve()} {first.time if first else ''}"
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in run.config().name)[:40]
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def flat(config: RunConfig) -> dict[str, Any]:
    """The config as `a.b` -> value, as `sdtune train` takes them."""
    rows: dict[str, Any] = {}
    for key, value in configs.to_dict(config).items():
        rows |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return rows


def missing(library: str, remedy: str = "") -> SdtuneError:
    """The error for a tool whose library is not there."""
    return SdtuneError(f"{library} is not installed: " + (remedy or f"pip install 'sdtune[{library}]'"))
