"""Which drawn pictures belong to which real one. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sdtune.data import readers
from sdtune.data.dataset import TEST, TRAIN, VALIDATION, held_out_part, resolve
from sdtune.data.layouts import AUTO_COLUMN, Entry, called, listed, plural
from sdtune.errors import DataError, EvaluationError

COLUMN = "reference"
"""Of a drawn folder's metadata.jsonl: the real picture that one was drawn for."""


@dataclass(frozen=True)
class Item:
    """A real picture with its caption ("" if it has none), and what both models drew for it: a picture a seed."""

    name: str
    real: Path
    caption: str
    original: tuple[Path, ...]
    tuned: tuple[Path, ...]


@dataclass(frozen=True)
class Pairs:
    """The items in the order of the real pictures' names."""

    items: tuple[Item, ...]
    how: str
    """In words: how they were paired."""
    notes: tuple[str, ...] = ()

    @property
    def captions(self) -> bool:
        """Whether every real picture has one."""
        return all(item.caption for item in self.items)


@dataclass(frozen=True)
class _Drawn:
    path: Path
    name: str
    """Its path inside its folder, without the suffix."""
    reference: str
    caption: str


def pair(reference: str | Path, original: str | Path, tuned: str | Path) -> Pairs:
    """Pair two folders of drawn pictures with the real ones.

    By the column "reference" of their metadata.jsonl if they have one, else by file name whatever the suffix, else by caption.
    Raises DataError for a folder without pictures, and EvaluationError where nothing fits.
    """
    real = _real(reference)
    found, ways = list[dict[str, list[Path]]](), list[str]()
    notes: list[str] = []
    for folder in (original, tuned):
        drawn = _drawn(folder)
        how, matched = _matched(drawn, real, str(folder), str(reference))
        found.append(matched)
        ways.append(how)
        if lost := len(drawn) - sum(map(len, matched.values())):
            notes.append(
                f"{folder}: {plural(lost, 'picture')} of {len(drawn)} belong to no picture of {reference} and are left out"
            )
    first, second = found
    items = [
        Item(name, entry.image, " ".join(entry.captions[:1]), tuple(sorted(first[name])), tuple(sorted(second[name])))
        for name, entry in sorted(real.items())
        if name in first and name in second
    ]
    if lacking := [name for name in real if name not in first or name not in second]:
        told = listed(sorted(lacking), 3)
        notes.append(f"{plural(len(lacking), 'real picture')} without a drawn one on both sides are left out: {told}")
    if len(items) < 2:
        raise EvaluationError(
            f"{plural(len(items), 'picture')} of {reference} with drawn ones in both {original} and {tuned}: at least 2 are needed"
        )
    return Pairs(tuple(items), " and ".join(dict.fromkeys(ways)), tuple(notes))


def training(folder: str | Path) -> list[Path]:
    """The training pictures: those of a set's training part, if it has one. Raises DataError for a folder without pictures."""
    root = resolve(str(folder))
    inside = next((root / name for name in TRAIN if (root / name).is_dir()), root)
    skip = (*VALIDATION, *TEST) if inside == root else ()
    found = _entries(inside, str(folder), captions=False, skip=skip)
    if not found:  # captions are lacking, and not needed: the column that is never lacking stands in for them
        found = _entries(inside, str(folder), "file_name", skip=skip)
    return [entry.image for entry in found]


def _real(folder: str | Path) -> dict[str, Entry]:
    """The real pictures by name: those of a set's test part, if it has one."""
    inside = held_out_part(resolve(str(folder)))
    entries = _entries(inside, str(folder))
    named = {_bare(called(entry.image, inside)): entry for entry in entries}
    if len(named) < len(entries):
        raise DataError(
            f"{folder}: pictures that differ in their suffix alone; drawn ones could belong to either: rename them"
        )
    return named


def _drawn(folder: str | Path) -> list[_Drawn]:
    """The drawn pictures. Their metadata needs no captions if it says whose they are."""
    root = resolve(str(folder))
    entries, said = _entries(root, str(folder), captions=False), "row"
    if not entries:
        entries, said = _entries(root, str(folder), COLUMN), "caption"
    found = []
    for e in entries:
        caption = " ".join(e.captions[:1])
        reference = caption if said == "caption" else str(e.row.get(COLUMN) or "")
        name = _bare(called(e.image, root))
        found.append(_Drawn(e.image, name, _bare(reference), "" if said == "caption" else caption or _prompt(e.image)))
    return found


def _entries(
    folder: Path, name: str, column: str = AUTO_COLUMN, *, captions: bool = True, skip: Collection[str] = ()
) -> Sequence[Entry]:
    """The pictures of a folder; none where only their captions are lacking, if those are not asked for. Raises DataError."""
    if not folder.is_dir():
        raise DataError(f"{name}: no such folder")
    found = readers.read(folder, column, skip, rows=True)
    if not found.entries and (captions or not found.faults):
        why = f" ({found.faults[0].where}: {found.faults[0].what})" if found.faults else ""
        raise DataError(f"{name}: no pictures there{why}")
    return found.entries


def _matched(
    drawn: Sequence[_Drawn], real: Mapping[str, Entry], folder: str, reference: str
) -> tuple[str, dict[str, list[Path]]]:
    """How, and the drawn pictures of each real one, by the first way that fits any."""
    for how, matches in _ways(drawn, real):
        found = defaultdict(list)
        for picture, name in zip(drawn, matches, strict=True):
            if name in real:
                found[name].append(picture.path)
        if found:
            return how, dict(found)
    raise EvaluationError(
        f"{folder}: none of its pictures ({listed([d.name for d in drawn], 2)}) belongs to one of {reference} ({listed(list(real), 2)}); "
        f'name them alike, or write the real one\'s name into a column "{COLUMN}" of its metadata.jsonl'
    )


def _ways(drawn: Sequence[_Drawn], real: Mapping[str, Entry]) -> Iterator[tuple[str, list[str]]]:
    if any(d.reference for d in drawn):
        yield f'by the column "{COLUMN}"', [d.reference for d in drawn]
    yield "by file name", [d.name for d in drawn]
    captions = [" ".join(entry.captions[:1]) for entry in real.values()]
    by_caption = {c: name for c, name in zip(captions, real, strict=True) if c and captions.count(c) == 1}
    yield "by caption", [by_caption.get(d.caption, "") for d in drawn]


def _bare(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix() if name else ""


def _prompt(picture: Path) -> str:
    """The prompt in the JSON file that `sdtune sample` writes beside its pictures."""
    try:
        found = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
        return str(found["prompt"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
