"""What a run's folder tells, read as it grows: its log, its curves, its previews, its scores. Imports no torch. Used in threads."""

from __future__ import annotations

import re
import threading
import tomllib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.events import Event, Failed, Finished, Sampled, Started, Step, Validated
from sdtune.experiments.listing import runs_below
from sdtune.follow.tail import Reader
from sdtune.runs import Run
from sdtune.serve.views import Curves, Preview

POINTS = 2000
"""Of a curve, at most."""
RECENT = 50
"""Steps over which speed is told, and 20 of them the loss."""
KEPT = 100
"""Runs whose logs stay in memory."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PICTURE = re.compile(r"samples/step-(\d{6,9})/(\d{2,5})\.png")


@dataclass
class History:
    """A run's log so far."""

    run: Run
    started: Started | None = None
    steps: list[Step] = field(default_factory=list)
    validated: dict[int, Validated] = field(default_factory=dict)
    sampled: dict[str, Sampled] = field(default_factory=dict)
    """By path."""
    last: Event | None = None
    finished: Finished | None = None
    sitting: int = 0
    """Steps before this sitting."""
    readable: bool = True

    def __post_init__(self) -> None:
        self._reader = Reader(self.run)

    def read(self) -> None:
        """Take in what is new."""
        try:
            news = self._reader.news()
        except (OSError, ValueError, KeyError, TypeError):  # of another version
            self.readable = False
            return
        if news.anew:
            self.started, self.last, self.finished, self.sitting = None, None, None, 0
            self.steps, self.validated, self.sampled = [], {}, {}
        for event in news.events:
            self._take(event)

    def _take(self, event: Event) -> None:
        self.last = event
        match event:
            case Started():
                self.started, self.sitting = event, len(self.steps)
            case Step():
                self.steps.append(event)
            case Validated():
                self.validated[event.step] = event
            case Sampled():
                self.sampled[event.path] = event
            case Finished():
                self.finished = event

    # ---- figures

    @property
    def step(self) -> int:
        return self.steps[-1].step if self.steps else self.started.step if self.started else 0

    @property
    def rate(self) -> float | None:
        """Steps a second over the last of this sitting, by the clock: validation and previews count."""
        recent = self.steps[self.sitting :][-RECENT:]
        took = recent[-1].time - recent[0].time if len(recent) > 1 else 0.0
        return (len(recent) - 1) / took if took > 0 else None

    @property
    def loss(self) -> float | None:
        recent = [s.loss for s in self.steps[-20:]]
        return sum(recent) / len(recent) if recent else None

    @property
    def best(self) -> Validated | None:
        return min((v for v in self.validated.values() if v.step), key=lambda v: v.loss, default=None)

    def curves(self) -> Curves:
        size = max(1, -(-len(self.steps) // POINTS))
        groups = [self.steps[i : i + size] for i in range(0, len(self.steps), size)]

        def mean(name: str) -> list[float]:
            return [sum(getattr(s, name) for s in group) / len(group) for group in groups]

        held_out = [self.validated[step] for step in sorted(self.validated)]
        return Curves(
            [group[-1].step for group in groups], mean("loss"), mean("lr"), mean("grad_norm"),
            [v.step for v in held_out], [v.loss for v in held_out], [v.raw for v in held_out],
        )  # fmt: skip

    def previews(self, name: str) -> list[Preview]:
        """Those that are still there; `name` is the run's id."""
        found = [preview(name, event) for path, event in self.sampled.items() if (self.run.path / path).is_file()]
        return sorted(filter(None, found), key=lambda p: p.id)


def preview(run: str, event: Sampled) -> Preview | None:
    """For clients. None for a path that training does not write."""
    match = _PICTURE.fullmatch(event.path.replace("\\", "/"))
    if not match:
        return None
    name = f"step-{match[1]}-{match[2]}"
    return Preview(name, event.step, event.prompt, event.seed, f"/api/runs/{run}/samples/{name}")


def picture_path(run: Run, name: str) -> Path | None:
    """The file of a preview by its id; what is no id is no path."""
    match = re.fullmatch(r"step-(\d{6,9})-(\d{2,5})", name)
    return run.samples / f"step-{match[1]}" / f"{match[2]}.png" if match else None


def failed(history: History, since: float) -> str:
    """Why the run ended, if the log says so of the time since then."""
    last = history.last
    return last.message if isinstance(last, Failed) and last.time >= since else ""


def settings(file: Path) -> dict[str, Any]:
    """A config file's tables; nothing where it cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


class Runs:
    """The runs that clients may name: what lies below one folder, and what the command line named. Ids are names of folders."""

    def __init__(self, folder: Path, more: Sequence[Path] = ()) -> None:
        self.folder = folder.expanduser().absolute()
        self._more = {_free(path.name, ()): path for path in more if not path.is_relative_to(self.folder.resolve())}
        self._histories = OrderedDict[Path, History]()
        self._lock = threading.Lock()

    def scan(self) -> dict[str, Path]:
        """Id -> folder of all that are there."""
        found = dict(self._inside())
        for name, path in self._more.items():
            if (path / "config.toml").is_file():
                found[_free(name, found)] = path
        return found

    def _inside(self) -> Iterator[tuple[str, Path]]:
        if self.folder.is_dir() and not (self.folder / "config.toml").is_file():
            for path in runs_below(self.folder):
                parts = path.relative_to(self.folder).parts
                if all(_NAME.fullmatch(part) for part in parts):
                    yield "~".join(parts), path

    def place(self, name: str) -> Path | None:
        """The folder of a run by its id: looked up, never put together."""
        return self.scan().get(name) if len(name) < 1000 else None

    def new_place(self, name: str) -> Path:
        """Where a new run of that name goes; `name` is one that the config allows."""
        assert _NAME.fullmatch(name)
        return self.folder / name

    def history(self, path: Path) -> History:
        """What its log says now."""
        with self._lock:
            if path not in self._histories:
                self._histories[path] = History(Run(path))
            self._histories.move_to_end(path)
            while len(self._histories) > KEPT:
                self._histories.popitem(last=False)
            self._histories[path].read()
            return self._histories[path]


def _free(name: str, taken: object) -> str:
    """The name as an id, with a number if another has it already."""
    slug = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip("-.+") or "run"
    known = taken if isinstance(taken, dict) else {}
    return next(n for i in range(1, 10_000) if (n := slug if i == 1 else f"{slug}~{i}") not in known)
