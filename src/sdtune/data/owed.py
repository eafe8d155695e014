"""Whom the pictures of a training are owed to: what metadata says of their authors and licences, for a page beside the result. Imports
no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sdtune.data import readers
from sdtune.data.collect.folder import CREDITS, Credit, credit_of, credits_text
from sdtune.data.config import DataConfig
from sdtune.data.dataset import locate, resolve, root_of, roots_of, split_folders
from sdtune.data.layouts import Entry, Folder, Found, plural
from sdtune.data.record import name_in

__all__ = ["CREDITS", "page"]


def page(config: DataConfig, names: Collection[str], what: str) -> str:
    """A Markdown page of the pictures `names` (as a `Record` has them) that `what` was trained on; "" if of none anything is known.

    Raises DataError for a place that is not there any more.
    """
    owed = list(_owed(config, frozenset(names)))
    if not owed:
        return ""
    rest = len(names) - len(owed)
    more = f" Of {plural(rest, 'other picture')} nothing is known." if rest else ""
    return credits_text(
        owed, f"Licences of the pictures that {what} was trained on", f"As their metadata has it.{more}"
    )


def _owed(config: DataConfig, names: frozenset[str]) -> Iterator[Credit]:
    root, seen = root_of(config), set[str]()
    for entry in _entries(config):
        name = name_in(entry.image, root)
        if name in names and name not in seen and (credit := credit_of(entry.row, name)):
            seen.add(name)
            yield credit


def _entries(config: DataConfig) -> Iterator[Entry]:
    """Of the places whose layout can say it. Their faults were judged when the training began."""
    for place in config.places():
        path, skip = locate(place.path, download=config.download), tuple[str, ...]()
        if path.is_dir():
            path, _, skip, _ = split_folders(path, config, first=place is config.places()[0])
        folder = readers.folder_of(path, config.caption_column, skip, roots=roots_of(path, config), rows=True)
        yield from _read(folder, place.layout)
    if config.class_prompt and config.class_path:
        yield from _read(readers.folder_of(resolve(config.class_path), rows=True), "auto")


def _read(folder: Folder, layout: str) -> list[Entry]:
    reader, found = readers.reader_of(folder, layout), Found()
    if reader is None or not reader.has_rows:
        return []
    reader.read(folder, found)
    return found.entries
