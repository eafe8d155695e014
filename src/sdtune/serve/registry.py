"""The models that clients may name: an id for each that the command line named. Imports no torch.

A request only ever names ids; what is opened for an id was said by whoever started the server.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdtune import config as configs
from sdtune.config import RunConfig
from sdtune.errors import ConfigError, ModelError, SdtuneError
from sdtune.experiments.listing import boards_below, place_of, runs_below
from sdtune.families import recognise, settings
from sdtune.families.places import Source, locate
from sdtune.runs import Run
from sdtune.serve import fits

WHOLE = ("full", "student")
"""Methods whose result is no adapter, but a denoiser of its own."""

_CHECKPOINT = re.compile(r"best|step-\d{1,12}")


@dataclass(frozen=True)
class Entry:
    """A model that can be drawn with: an original, a run on one, or the file of an adapter on one."""

    id: str
    kind: Literal["original", "run", "adapter"]
    base: str
    """The id of its original; its own if it is one."""
    method: str = ""
    """Of a run: lora, full, ..."""
    family: str = ""
    resolution: int | None = None
    grid: int = 1
    """Sides are multiples of this."""
    place: str = ""
    """Where it is opened; never told to clients."""
    model: str = ""
    """Of an original: the recipe's [model], as JSON; never told to clients."""
    chunks: int = 1
    made: float = 0.0
    """Of a run that was trained while the server ran: when. Trained further, it is another entry under the same id."""
    which: str = "final"
    """Of a run: its result, or the name of a checkpoint."""

    @property
    def tuned(self) -> str:
        """What pictures' records call it."""
        if self.kind == "original":
            return ""
        name = Path(self.place).resolve().name
        return f"{name}@{self.which}" if self.kind == "run" else name

    @property
    def checkpoints(self) -> list[str]:
        """Of a run that is served: what it is known by at earlier steps, `ID@NAME`."""
        found = Run(Path(self.place)).checkpoints if self.kind == "run" else None
        names = (
            sorted(p.name for p in found.iterdir() if _CHECKPOINT.fullmatch(p.name)) if found and found.is_dir() else []
        )
        return [f"{self.id}@{name}" for name in names]

    @property
    def stackable(self) -> bool:
        """Whether it can lie on a model beside others."""
        return self.kind == "adapter" or (self.kind == "run" and self.method not in WHOLE)

    def told(self) -> dict[str, Any]:
        """For clients."""
        return {
            "id": self.id, "kind": self.kind, "base": self.base, "method": self.method, "family": self.family,
            "resolution": self.resolution, "multiple_of": self.grid, "adapter": self.stackable, "checkpoints": self.checkpoints,
        }  # fmt: skip


class Registry:
    """Entries by id, in the order in which they were named; what is tuned comes before the originals."""

    def __init__(self, entries: Sequence[Entry], roots: Sequence[Path] = ()) -> None:
        self.entries = {entry.id: entry for entry in entries}
        self.roots = tuple(roots)
        """Runs and folders of runs that the command line named: what lies below them may be looked at."""

    def get(self, name: str) -> Entry | None:
        """The entry of an id; of `ID@NAME` that of a run's checkpoint, as long as it is there."""
        own, at, which = name.partition("@")
        entry = self.entries.get(own)
        if not at or entry is None:
            return entry
        return dataclasses.replace(entry, id=name, which=which) if name in entry.checkpoints else None

    def add(self, entries: Sequence[Entry]) -> None:
        """At the end, or in the place of what has the same id."""
        self.entries |= {entry.id: entry for entry in entries}

    @property
    def first(self) -> Entry:
        return next(iter(self.entries.values()))

    def dumped(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(entry) for entry in self.entries.values()]

    @classmethod
    def loaded(cls, rows: Sequence[dict[str, Any]]) -> Registry:
        return cls([Entry(**row) for row in rows])


def build(sources: Sequence[str], base: str = "embedded", runs: Path | None = None) -> tuple[Registry, list[str]]:
    """The registry of what `sources` name: runs, folders of runs and adapter files, adapter files, models; and notes on what was left out.

    `base` is the model that adapter files lie on, `runs` where trainings write. Without sources it is the runs below `runs`, and `base`.
    Raises ConfigError and ModelError.
    """
    made, notes, roots = _Maker(), list[str](), list[Path]()
    named = list(sources) or ([*([str(runs)] if runs and runs.is_dir() else []), base])
    for source in named:
        place = Path(source).expanduser()
        if Run(place).exists():
            _check_finished(Run(place))
            made.run(Run(place))
            roots.append(place)
        elif place.suffix == ".safetensors" and place.is_file() and recognise(str(place)) is None:
            made.adapter(place, base)
        elif place.is_dir() and not (place / "model_index.json").exists():
            notes += _all_of(made, place, base, asked=bool(sources))
            roots.append(place)
        else:
            made.original(_model_of(source))
    if not made.tuned and not made.originals:
        made.original(_model_of(base))
    if not sources:  # `sdtune experiment` and `sdtune compare A B` write there: to look at, not to draw with
        roots += [place for name in ("experiments", "comparisons") if (place := Path(name)).is_dir()]
    if runs and runs not in roots:
        roots.append(runs)  # where trainings write; it may not be there yet
    return Registry([*made.tuned, *made.originals.values()], roots), notes


def trained(known: Registry, run: Run) -> list[Entry]:
    """The entry of a run that has just been trained, and before it that of its original if that is new. Raises ConfigError, ModelError."""
    _check_finished(run)
    made, place = _Maker(known), str(run.path.resolve())
    now = run.final.stat().st_mtime
    if (same := next((e for e in known.entries.values() if e.place == place), None)) is not None:
        return [dataclasses.replace(same, made=now)]
    made.run(run)
    originals = [entry for entry in made.originals.values() if entry.id not in known.entries]
    return [*originals, *(dataclasses.replace(entry, made=now) for entry in made.tuned)]


def _all_of(made: _Maker, folder: Path, base: str, *, asked: bool) -> Iterator[str]:
    """The runs below a folder, and the adapter files in it."""
    found, why = 0, ""
    for path in [*runs_below(folder), *sorted(folder.glob("*.safetensors"))]:
        try:
            if path.suffix == ".safetensors":
                made.adapter(path, base)
            else:
                _check_finished(Run(path))
                made.run(Run(path))
            found += 1
        except SdtuneError as error:  # one of many: the others are served
            why = str(error).splitlines()[0]
            yield f"left out: {why}"
    if found or not asked:
        return
    if any(boards_below(folder)):
        yield f"{folder}: holds no run to draw with; its leaderboards are shown"
    elif why:
        raise ConfigError(f"{folder}: nothing in it can be drawn with; {why}")
    else:
        raise ConfigError(
            f"{folder}: holds no finished run and no adapter file that fits; `sdtune ls {folder}` says what is there"
        )


def _check_finished(run: Run) -> None:
    if not run.final.is_dir():
        raise ConfigError(f"{run.path}: not finished, there is no final/; finish it with `sdtune train`")


def _model_of(source: str) -> RunConfig:
    locate(Source(path=source))  # says what is wrong with a pickled file, or one that is not there
    family = recognise(source)
    if family is None:
        raise ModelError(f"{source}: no run, no folder of runs, no adapter file, and no model that is here")
    return configs.load(None, [f"model.path={json.dumps(source)}", f"model.type={family}"])


class _Maker:
    """Gives each thing an id of its own, and each original one entry, however many runs lie on it."""

    def __init__(self, known: Registry | None = None) -> None:
        """`known`: what has its entry already."""
        entries = known.entries.values() if known else ()
        self.tuned: list[Entry] = []
        self.originals = {_key(json.loads(e.model)): e for e in entries if e.kind == "original"}
        self._ids = {e.id for e in entries}
        self._places = {Path(e.place) for e in entries if e.place}

    def original(self, config: RunConfig) -> Entry:
        model = configs.to_dict(config)["model"]
        key = _key(model)
        if key not in self.originals:
            name = self._id(Path(config.model.path).name)
            folder = settings.folder_of(config.model)
            side, grid = settings.resolution(folder), settings.grid(folder)
            self.originals[key] = Entry(
                name, "original", name, family=config.model.type, resolution=side, grid=grid, model=json.dumps(model)
            )
        return self.originals[key]

    def run(self, run: Run) -> None:
        config = run.config()
        if config.plugins:
            raise ConfigError(f"{run.path}: needs plugins; runs with code of their own are not served")
        if str(config.method.type) not in WHOLE:
            for file in run.final.glob("*.safetensors"):
                fits.check(file, *locate(config.model))
        base, chunks = self.original(config), config.data.caption_chunks
        self._add(
            run.path,
            Entry("", "run", base.id, str(config.method.type), base.family, base.resolution, base.grid, chunks=chunks),
        )

    def adapter(self, file: Path, base: str) -> None:
        config = _model_of(base)
        fits.check(file, *locate(config.model))
        on = self.original(config)
        self._add(file, Entry("", "adapter", on.id, "", on.family, on.resolution, on.grid))

    def _add(self, path: Path, entry: Entry) -> None:
        place = path.resolve()
        if place not in self._places:
            self._places.add(place)
            cell = place_of(place)
            name = cell.name if cell else place.stem if place.suffix == ".safetensors" else place.name
            self.tuned.append(dataclasses.replace(entry, id=self._id(name), place=str(place)))

    def _id(self, name: str) -> str:
        slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60] or "model"
        taken = (slug, *(f"{slug}-{i}" for i in range(2, len(self._ids) + 3)))
        chosen = next(s for s in taken if s not in self._ids)
        self._ids.add(chosen)
        return chosen


def _key(model: dict[str, Any]) -> str:
    return json.dumps(model, sort_keys=True)
