"""Any layout that the readers know to an imagefolder or WebDataset's tar files. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdtune.data import archives, dataset, readers
from sdtune.data.config import DataConfig
from sdtune.data.layouts import Entry, Fault, listed, plural, shown
from sdtune.data.write import Item, Wish, Written, lost_columns, named, write
from sdtune.data.write import check_place as check_folder
from sdtune.errors import DataError
from sdtune.happened import Happened

SPLITS = {"train": dataset.TRAIN, "validation": dataset.VALIDATION, "test": dataset.TEST}


@dataclass(frozen=True)
class Read:
    """What a source holds: (split, entry, path in the split's folder), and what is to be told of it."""

    entries: list[tuple[str, Entry, str]]
    notes: list[str]


@dataclass(frozen=True)
class Opened(Happened):
    """What is about to be written."""

    source: str
    out: str
    pictures: dict[str, int]
    """By split."""
    notes: list[str]


def read_source(config: DataConfig) -> Read:
    """All pictures of `config.path` with captions, masks, other columns and splits, test/ included; none is opened.

    Raises DataError that lists everything that is wrong, as training would.
    """
    (place,) = config.places()
    root = dataset.locate(place.path, download=config.download)
    parts, notes = _parts(root, config)
    entries, faults = [], list[Fault]()
    for split, folder, skip in parts:
        found = readers.read(
            folder, config.caption_column, skip, layout=place.layout, roots=dataset.roots_of(folder, config),
            masked=True, mask_folder=dataset.mask_folder_of(config, folder), rows=True,
        )  # fmt: skip
        inside = folder if folder.is_dir() else folder.parent
        prefix = f"{inside.name}/" if len(parts) > 1 else ""
        faults += [replace(fault, where=prefix + fault.where) for fault in found.faults]
        notes += [f"{prefix}: {note}" if prefix else note for note in found.notes]
        by_row = split == "" and folder.is_dir()
        for entry in found.entries:
            name = _canonical(dataset.split_of(entry.image, inside)) if by_row else split
            entries.append((name, entry, _path_of(entry.image, inside, name if by_row else "")))
    notes += dataset.judge(faults, config, place.path)
    if not entries:
        raise DataError(f"{place.path}: no pictures there; give a folder of pictures with captions")
    if any(split in ("validation", "test") for split, *_ in entries):
        entries = [(split or "train", entry, path) for split, entry, path in entries]
    else:
        entries = [("", entry, path) for _, entry, path in entries]
    return Read(entries, notes)


def convert(config: DataConfig, wish: Wish) -> Iterator[Opened | Written]:
    """What is to be written, then how far it is. Raises DataError."""
    check_place(wish.out, config)
    read = read_source(config)
    items = named(read.entries)
    counts = Counter(item.split for item in items)
    pictures = {split: counts[split] for split in ("", *SPLITS) if counts[split]}
    yield Opened(config.path, str(wish.out), pictures, [*read.notes, *not_kept(items)])
    yield from write(items, wish, config.path)


def check_place(out: Path, config: DataConfig) -> None:
    """Refuse a place that cannot become the folder, before anything is read. Raises DataError."""
    check_folder(out)
    root = dataset.root_of(config)
    if out.expanduser().resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{out}: lies in {config.path} itself, which would then hold each picture twice; choose a folder outside"
        )


def not_kept(items: Sequence[Item]) -> list[str]:
    """What of the source the written folder does not say."""
    notes = []
    if repeats := Counter(item.entry.repeats for item in items if item.entry.repeats > 1):
        said = listed([f"{plural(n, 'picture')} {times} times" for times, n in sorted(repeats.items())])
        notes.append(f"repeats are not kept ({said} in an epoch); data.sources has them for a folder each")
    if columns := lost_columns(items):
        notes.append(f"columns not kept, since they are no plain texts or numbers: {listed(columns)}")
    if bare := sum(not item.entry.captions for item in items):
        notes.append(f"{plural(bare, 'picture')} without a caption")
    return notes


def _parts(root: Path, config: DataConfig) -> tuple[list[tuple[str, Path, tuple[str, ...]]], list[str]]:
    """The folders to read with their splits and what to skip in them ("": the names of rows and folders say it), and notes."""
    if not root.is_dir():
        return [("", root, ())], []
    train, validation, skip, notes = dataset.split_folders(root, config)
    tests = [root / name for name in dataset.TEST if (root / name).is_dir()] if train != root or skip else []
    held = [("validation", validation)] if validation else []
    held += [("test", test) for test in tests]
    parts = [("train" if train != root or held else "", train, skip)] + [(name, folder, ()) for name, folder in held]
    return parts, [note for note in notes if " is left alone: neither" not in note]


def _canonical(split: str) -> str:
    return next((name for name, words in SPLITS.items() if split in words), "")


def _path_of(image: Path, folder: Path, split: str) -> str:
    """The path in its folder, without the split's folder; of pictures in other files with the file's stem as a folder."""
    if image.is_relative_to(folder):
        path = image.relative_to(folder)
        if (archive := archives.archive_of(image)) is not None:
            path = archive.relative_to(folder).with_suffix("") / image.relative_to(archive)
    else:
        path = Path(image.name)
    if split and len(path.parts) > 1 and path.parts[0] in SPLITS[split]:
        path = path.relative_to(path.parts[0])
    return shown(path)
