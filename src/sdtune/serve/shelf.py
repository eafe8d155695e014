"""What can be looked at: the runs and experiments below what the command line named, each under an id. Imports no torch.

Nothing is opened by a path from a request. Folders are looked through anew at each `look`; what has not changed is not read again.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sdtune import report, timeline
from sdtune.data import thumbs
from sdtune.experiments import listing, page
from sdtune.experiments.matrix import settings_text
from sdtune.judging.scores import QUESTIONS, Figure, Scores, Verdict
from sdtune.runs import Run
from sdtune.serve.errors import ApiError, not_found
from sdtune.serve.registry import Registry
from sdtune.stats import Interval

Tone = Literal["good", "bad", "open", ""]
Page = Literal["report", "vote", "sweep", "timeline", "scores", "board", "sheet"]
PAGES: dict[Page, str] = {
    "report": "Report", "vote": "Vote", "sweep": "Sweep", "timeline": "Timeline", "scores": "Figures as JSON", "board": "Leaderboard",
    "sheet": "Grid",
}  # fmt: skip
STEPS = 8
"""Columns of a timeline."""
SIDE = 384
"""Pictures are sent at most so wide."""
FRESH = 2.0
"""Seconds after which pages look again."""


@dataclass(frozen=True)
class Seen:
    """A run, as it was found."""

    id: str
    name: str
    row: listing.Row
    path: Path
    """Never told to clients."""
    base: str
    """What it began from, without a path."""
    experiment: str = ""
    """The id of the experiment that it belongs to."""
    model: str = ""
    """The id under which it can be drawn with, if it can."""
    compared_at: float | None = None
    """Seconds since 1970."""
    pages: tuple[Page, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """scores.json."""

    @cached_property
    def scores(self) -> Scores:
        return scores_of(self.told)

    @property
    def headline(self) -> tuple[str, Tone]:
        """What came out, in a sentence, and its tone; before there is a comparison, why there is none."""
        if not self.row.compared:
            return _not_compared(self.row), ""
        if not self.scores.verdicts:
            return "Compared by another version of sdtune; compare it again to see what came out.", ""
        _, tone = report.headline(self.scores)
        return str(self.told.get("headline", "")), _TONES.get(tone, "")

    @property
    def took(self) -> float | None:
        """Seconds of drawing and judging."""
        spent = self.told.get("seconds")
        known = [v for v in spent.values() if isinstance(v, int | float)] if isinstance(spent, dict) else []
        return sum(known) if known else None


_TONES: dict[str, Tone] = {"good": "good", "bad": "bad", "open": "open"}


@dataclass(frozen=True)
class CellSeen:
    """A cell of an experiment, with its trainings in the order of their seeds."""

    name: str
    settings: str
    runs: tuple[tuple[int, str, str], ...]
    """Seed, state in words, and the id of the run; "" where there is none yet."""


@dataclass(frozen=True)
class Experiment:
    id: str
    name: str
    path: Path
    summary: str
    """What came out; "" where there is no leaderboard yet."""
    decides: str
    """The figure that decides."""
    made_at: float | None
    cells: tuple[CellSeen, ...]
    pages: tuple[Page, ...]

    @property
    def trainings(self) -> tuple[int, int]:
        """How many are done, and how many there are."""
        states = [state for cell in self.cells for _, state, _ in cell.runs]
        return states.count("finished"), len(states)


@dataclass(frozen=True)
class Shelves:
    runs: tuple[Seen, ...] = ()
    """The newest first, those of experiments too."""
    experiments: tuple[Experiment, ...] = ()

    def run(self, name: str) -> Seen:
        """Raises ApiError."""
        if (found := next((r for r in self.runs if r.id == name), None)) is None:
            raise not_found("run")
        return found

    def experiment(self, name: str) -> Experiment:
        """Raises ApiError."""
        if (found := next((e for e in self.experiments if e.id == name), None)) is None:
            raise not_found("experiment")
        return found


class Shelf:
    """All of it blocks for as long as the disk takes, and may be called from any thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ids = dict[Path, str]()
        self._known = dict[Path, tuple[object, listing.Row | None, dict[str, Any]]]()
        self._lock = threading.Lock()
        self._at = -FRESH
        self.seen = Shelves()
        """As it was at the last look."""

    def look(self, age: float = 0.0) -> Shelves:
        """What lies there now, or `age` seconds ago at most."""
        with self._lock:
            if time.monotonic() - self._at > age:
                self.seen, self._at = self._look(), time.monotonic()
        return self.seen

    def _look(self) -> Shelves:
        paths = list(dict.fromkeys(p.resolve() for root in self._registry.roots for p in listing.runs_below(root)))
        boards = list(dict.fromkeys(p.resolve() for root in self._registry.roots for p in listing.boards_below(root)))
        homes = {path: home for path in paths if (home := _home(path, boards))}
        models = {Path(e.place): e.id for e in list(self._registry.entries.values()) if e.kind == "run"}
        for path in [*models, *paths]:
            self._id(path, models.get(path) or (_spoken(path, homes[path]) if path in homes else path.name))
        for home in [*boards, *homes.values()]:
            self._id(home, home.name)
        runs = [seen for path in paths if (seen := self._run(path, homes.get(path), models.get(path, "")))]
        self._known = {path: self._known[path] for path in paths}
        runs.sort(key=lambda r: (-r.row.began, r.id))
        found = [self._experiment(home, runs) for home in dict.fromkeys([*boards, *homes.values()])]
        return Shelves(tuple(runs), tuple(sorted(found, key=lambda e: -(e.made_at or 0))))

    def _id(self, path: Path, name: str) -> str:
        """The same for a path as long as the server lives."""
        if path not in self._ids:
            slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:80] or "run"
            taken = set(self._ids.values())
            self._ids[path] = next(
                s for i in range(1, len(taken) + 2) if (s := slug if i == 1 else f"{slug}-{i}") not in taken
            )
        return self._ids[path]

    def _run(self, path: Path, home: Path | None, model: str) -> Seen | None:
        run = Run(path)
        stamp: list[object] = [
            _stamp(f) for f in (run.events_file, run.scores_file, run.final, path / "failure.json", run.lock_file)
        ]
        stamp.append(run.living())
        if self._known.get(path, (None,))[0] != stamp:
            self._known[path] = stamp, listing.row(path), _json(run.scores_file)
        _, row, told = self._known[path]
        if row is None:
            return None
        files: dict[Page, bool] = {
            "report": run.report_file.is_file(), "vote": run.vote_file.is_file(), "sweep": (run.sweep / "report.html").is_file(),
            "timeline": any(run.samples.glob("*/*.png")), "scores": bool(told),
        }  # fmt: skip
        return Seen(
            self._ids[path], _spoken(path, home) if home else path.name, row, path, _base(run), self._ids[home] if home else "", model,
            _time(run.scores_file), tuple(page for page, there in files.items() if there), told,
        )  # fmt: skip

    def _experiment(self, home: Path, runs: list[Seen]) -> Experiment:
        board = _json(home / page.JSON)
        name, own = self._ids[home], {r.path: r for r in runs if r.experiment == self._ids[home]}
        files: dict[Page, bool] = {"board": (home / page.NAME).is_file(), "sheet": (home / page.SHEET).is_file()}
        figures = _dict(board, "figures")
        primary = _dict(figures, str(board.get("primary")))
        return Experiment(
            name, str(board.get("name") or home.name), home, str(board.get("summary", "")), str(primary.get("label", "")),
            _time(home / page.JSON), tuple(_cells(home, board, own)), tuple(p for p, there in files.items() if there),
        )  # fmt: skip

    # ---- files

    def file(self, name: str, kind: Page, scratch: Path) -> Path:
        """The file of a page of a run or experiment. A timeline is drawn into `scratch`. Raises ApiError."""
        if kind in ("board", "sheet"):
            home = self.look(FRESH).experiment(name).path
            return _there(home / (page.NAME if kind == "board" else page.SHEET))
        run = Run(self.look(FRESH).run(name).path)
        match kind:
            case "timeline":
                return _timeline(run, scratch / f"{name}.png")
            case "report":
                return _there(run.report_file)
            case "vote":
                return _there(run.vote_file)
            case "sweep":
                return _there(run.sweep / "report.html")
            case _:
                return _there(run.scores_file)

    def picture(self, name: str, number: int, side: str) -> tuple[bytes, str]:
        """A picture of a comparison, of at most SIDE pixels, and its media type. Raises ApiError and DataError."""
        run = self.look(FRESH).run(name)
        rows, folder = run.told.get("pictures", []), Run(run.path).comparison.resolve()
        if side not in ("base", "tuned") or not 0 <= number < len(rows):
            raise not_found("picture")
        path = (folder / str(rows[number].get(side, ""))).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise not_found("picture")
        return thumbs.small(path, SIDE)


# ---- what lies where


def _home(run: Path, boards: list[Path]) -> Path | None:
    """The folder of the experiment that a run belongs to: by its place, or below a leaderboard."""
    if place := listing.place_of(run):
        return place.experiment
    return next((board for board in boards if run.is_relative_to(board)), None)


def _spoken(run: Path, home: Path) -> str:
    """ranks, r8, seed 0."""
    place = listing.place_of(run)
    return place.name if place else f"{home.name}, {run.name}"


def _cells(home: Path, board: Mapping[str, Any], runs: Mapping[Path, Seen]) -> Iterator[CellSeen]:
    told = _dict(board, "cells")
    settings = {f"{name}-{cell.get('id')}": cell.get("settings", {}) for name, cell in told.items()}
    try:
        folders = sorted(p for p in home.iterdir() if p.is_dir() and listing.cell_of(p))
    except OSError:
        folders = []
    for folder in folders:
        seeds = sorted((n, p.resolve()) for p in folder.iterdir() if (n := listing.seed_of(p)) is not None)
        rows = tuple((n, _state(p, runs.get(p)), runs[p].id if p in runs else "") for n, p in seeds)
        yield CellSeen(listing.cell_of(folder), settings_text(dict(settings.get(folder.name, {}))), rows)


def _state(path: Path, run: Seen | None) -> str:
    """As `sdtune experiment` calls it."""
    if (path / "failure.json").is_file() or (run and run.row.state == "failed"):
        return "failed"
    if run is None:
        return "missing"
    if run.row.state == "finished":
        return "finished" if run.row.compared else "to compare"
    return "running" if run.row.state == "running" else "begun"


def _base(run: Run) -> str:
    import tomllib

    try:
        return Path(tomllib.loads(run.config_file.read_text(encoding="utf-8"))["model"]["path"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _timeline(run: Run, file: Path) -> Path:
    from sdtune.contact import write_timeline

    if (_time(file) or 0) < (_time(run.events_file) or 1):
        if (found := timeline.read(run, STEPS)) is None:
            raise ApiError(404, "no_samples", "this run has previews of fewer than two steps")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_timeline(found, file)
    return file


def _there(path: Path) -> Path:
    if not path.is_file():
        raise not_found("page")
    return path


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dict(told: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = told.get(key)
    return found if isinstance(found, dict) else {}


# ---- what came out


def _not_compared(row: listing.Row) -> str:
    return {
        "finished": "Not compared with its base yet: nobody knows whether it helped.",
        "running": "It is being trained.",
        "failed": "The training failed.",
        "stopped": "The training was stopped before its end.",
        "empty": "The training has not begun.",
    }.get(row.state, row.state)


def scores_of(told: Mapping[str, Any]) -> Scores:
    """Figures and verdicts of a scores.json; what another version wrote and this one does not know is left out."""
    figures = tuple(f for row in _rows(told, "figures") if (f := _figure(row)))
    return Scores(figures, tuple(v for row in _rows(told, "verdicts") if (v := _verdict(row))))


def _rows(told: Mapping[str, Any], key: str) -> list[Any]:
    found = told.get(key)
    return found if isinstance(found, list) else []


def _figure(row: Mapping[str, Any]) -> Figure | None:
    try:
        parts = {k: _interval(row[k]) for k in ("base", "tuned", "difference", "real")}
        return Figure(**{**row, **parts})
    except (KeyError, TypeError, ValueError):
        return None


def _interval(row: Mapping[str, Any] | None) -> Interval | None:
    if row is None:
        return None
    known: dict[str, Any] = {k: float("nan") if v is None else v for k, v in row.items()}
    return Interval(**known)


def _verdict(row: Mapping[str, Any]) -> Verdict | None:
    try:
        return Verdict(**row) if row["key"] in QUESTIONS else None
    except (KeyError, TypeError):
        return None
