"""A cell: one way to train, run with several seeds. Its id follows from its content, so a changed cell is a new cell.

OUT/<name>-<id>/seed-<n>   an ordinary run folder; beside its files resources.json, and failure.json if it could not be made
OUT/<name>-<id>/card.md    the cell's card
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdtune.config import RunConfig
from sdtune.files import write_json
from sdtune.runs import Run
from sdtune.schema import Section, defaults

APART = ("name", "evaluate", "sample")
"""Parts of a config that do not change what is trained. How pictures are compared belongs to the matrix, not to a cell."""
APART_KEYS = {"train": ("seed", "save_every", "keep", "sample_every"), "data": ("cache",)}


@dataclass(frozen=True)
class Cell:
    """`settings` are the dotted keys in which it differs from the matrix's base recipe."""

    name: str
    settings: dict[str, Any]
    config: RunConfig
    idea: str = ""
    """What is hoped for, in the words of the matrix."""
    source: str = ""
    """Where the idea comes from."""
    left_out: tuple[str, ...] = field(default=())
    """Keys of the base recipe that its kind of method (or optimiser, ...) does not have."""

    @property
    def id(self) -> str:
        """Eight hexadecimal digits of the content."""
        return identity(self.config)

    def folder(self, out: Path) -> Path:
        """Where its runs lie; a cell that was only given another name stays where it is."""
        found = sorted(p for p in out.glob(f"*-{self.id}") if p.is_dir())
        return found[0] if found else out / f"{self.name}-{self.id}"

    def runs(self, out: Path, seeds: tuple[int, ...]) -> Iterator[CellRun]:
        folder = self.folder(out)
        for seed in seeds:
            train = dataclasses.replace(self.config.train, seed=seed)
            config = dataclasses.replace(self.config, train=train, name=f"{folder.name}-s{seed}")
            yield CellRun(self, seed, config, Run(folder / f"seed-{seed}"))


@dataclass(frozen=True)
class CellRun:
    """One training of a cell."""

    cell: Cell
    seed: int
    config: RunConfig
    run: Run

    @property
    def label(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def failure_file(self) -> Path:
        return self.run.path / "failure.json"

    @property
    def failure(self) -> str:
        """Why it could not be made; "" if nothing went wrong."""
        try:
            return str(json.loads(self.failure_file.read_text(encoding="utf-8"))["message"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def note_failure(self, message: str, trace: str = "") -> None:
        write_json(self.failure_file, {"message": message, "traceback": trace.splitlines()})


def identity(config: RunConfig) -> str:
    """Eight hexadecimal digits of all that changes what is trained. Values that are the default are left out, so that a key which is
    new in a later version changes no id."""
    told = {k: v for k, v in _content(config).items() if k not in APART}
    for group, keys in APART_KEYS.items():
        told[group] = {k: v for k, v in told.get(group, {}).items() if k not in keys}
    return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:8]


def _content(section: Section) -> dict[str, Any]:
    usual = defaults(section)
    out = {}
    for f in dataclasses.fields(section):  # type: ignore[arg-type]  # every section is a dataclass
        value = getattr(section, f.name)
        if f.name == "type" or f.name not in usual or value != usual[f.name] or isinstance(value, Section):
            out[f.name] = _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return _content(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value
