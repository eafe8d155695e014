"""Hugging Face's `datasets` as Arrow files (save_to_disk) or Parquet files (as on the Hub): a picture and a caption in each row."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from sdtune.data import masks, rows
from sdtune.data.images import SUFFIXES
from sdtune.data.layouts import AUTO_COLUMN, Entry, Folder, Found, captions_of, listed, located, plural
from sdtune.data.masks import Mask
from sdtune.data.readers.base import Reader
from sdtune.data.readers.named import OF, chosen, tell_of_missing
from sdtune.data.readers.tables import content_of
from sdtune.errors import DataError

CAPTIONS = (
    "text", "texts", "caption", "captions", "sentence", "sentences", "prompt", "prompts", "description", "descriptions", "txt",
    "en_caption", "caption_en", "alt_text", "title",
)  # fmt: skip
"""Columns that are taken for the caption, the first that is there, while data.caption_column names none."""
SAVED = ("state.json", "dataset_info.json")
"""What save_to_disk writes beside the data."""
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval")


class Arrow(Reader):
    """A folder of save_to_disk, of one split or of several; or *.parquet somewhere below. Pyarrow is needed, `datasets` is not.

    Pictures are bytes in the rows, or files that the rows name inside the folder or data.roots.
    """

    name = "arrow"
    has_rows = True
    file = "*.parquet"

    def recognises(self, folder: Folder) -> bool:
        if folder.file is not None:
            return bool(chosen(folder, rows.SUFFIXES))
        if folder.names.issuperset(SAVED) or "dataset_dict.json" in folder.names:
            return True
        return not folder.pictures and any(_holds_pictures(path) for path in _shards(folder, Found()))

    def read(self, folder: Folder, found: Found) -> None:
        shards = _shards(folder, found)
        if not shards and not found.faults:
            return found.fault((folder.file or folder.path).name, "no .arrow or .parquet file here; give their folder")
        tell_of_missing(folder, shards, found)
        said = _Said()
        for shard in shards:
            try:
                _read_shard(folder, shard, said, found)
            except DataError as error:
                found.fault(folder.name(shard), str(error))
                if str(error) == rows.NEEDED:
                    return None
        found.notes += said.notes(folder)
        kinds = " and ".join(sorted({p.suffix[1:].capitalize() for p in shards}))
        what = f"{plural(len(found.entries), 'picture')} in {plural(len(shards), 'file')}"
        return found.notes.insert(0, f"datasets in {kinds} files: {what}" + said.columns())


@dataclass
class _Said:
    """What is worth telling once for all files."""

    captions: dict[str, None]
    pictures: dict[str, None]
    passed: dict[str, None]
    captionless: dict[str, None]

    def __init__(self) -> None:
        self.captions, self.pictures, self.passed, self.captionless = {}, {}, {}, {}

    def columns(self) -> str:
        taken = [f"{what} from {listed([repr(n) for n in names])}" for what, names in
                 (("pictures", self.pictures), ("captions", self.captions)) if names]  # fmt: skip
        return f"; {', '.join(taken)}" if taken else ""

    def notes(self, folder: Folder) -> list[str]:
        notes = []
        if self.captionless:
            what = f"no column of captions (there are: {listed(list(self.captionless), 12)}); data.caption_column names one"
            notes.append(what)
        if self.passed:
            notes.append(f"other columns of pictures, not read: {listed(list(self.passed))}")
        return notes


def split_of(image: Path, folder: Path) -> str:
    """The split that a picture in a row belongs to by the name of its file or of a folder above it; "" where none says so.

    Hub: data/train-00000-of-00002.parquet, train/0000.parquet; the cache of `datasets`: name-train.arrow.
    """
    if not any(suffix in str(image) for suffix in rows.SUFFIXES) or not image.is_relative_to(folder):
        return ""
    parts = image.relative_to(folder).parts
    at = next((i for i, part in enumerate(parts) if PurePath(part).suffix in rows.SUFFIXES), None)
    if at is None:
        return ""
    words = re.split(r"[-_. ]", OF.sub("", PurePath(parts[at]).stem).lower())
    named = [part.lower().removeprefix("partial-") for part in parts[:at]]
    return next((name for name in (*named, words[0], words[-1]) if name in SPLITS), "")


# ---- which files


def _shards(folder: Folder, found: Found) -> list[Path]:
    """The files to read: those that state.json lists where there is one, else all but what `datasets` keeps for itself."""
    if folder.file is not None:
        return chosen(folder, rows.SUFFIXES)
    there = [p for p in folder.files if p.suffix in rows.SUFFIXES and p.name != "metadata.parquet"]
    states = {p.parent: p for p in folder.files if p.name == "state.json" and (p.parent / SAVED[1]).is_file()}
    shards = [p for p in there if p.parent not in states and not p.name.startswith(("cache-", "tmp"))]
    for state in states.values():
        files = _listed_in(folder, state, found)
        shards += [p for p in files if p in there]
        if gone := [p for p in files if p not in there]:
            what = (
                f"{plural(len(gone), 'file')} of it not here ({listed([p.name for p in gone])}); save the dataset again"
            )
            found.fault(folder.name(state), what)
    return sorted(shards)


def _listed_in(folder: Folder, state: Path, found: Found) -> list[Path]:
    content = content_of(state, found)
    files = content.get("_data_files") if isinstance(content, dict) else None
    if not isinstance(files, list) or (isinstance(content, dict) and content.get("_indices_files")):
        what = "no list of data files, or one with an index beside it; save the dataset again with a newer `datasets`"
        found.fault(folder.name(state), what)
        return []
    names = [file.get("filename") for file in files if isinstance(file, dict)]
    plain = [name for name in names if isinstance(name, str) and PurePosixPath(name).name == name]
    return [state.parent / name for name in plain]


def _holds_pictures(path: Path) -> bool:
    try:
        return bool(rows.picture_columns(rows.table(path).schema))
    except DataError:
        return True  # which `read` then says


# ---- one file


def _read_shard(folder: Folder, shard: Path, said: _Said, found: Found) -> None:
    """Raises DataError without a name."""
    table = rows.table(shard)
    light, pictures = rows.light_columns(table.schema), rows.picture_columns(table.schema)
    if not pictures:
        raise DataError(f"no column of pictures; it has: {listed(table.schema.names, 12)}")
    column = _caption_column(folder, light, table.schema.names)
    mask = next((c for c in pictures[1:] if c in masks.COLUMNS), None)
    said.pictures[pictures[0]] = None
    said.passed |= {name: None for name in pictures[1:] if name != mask or not folder.masked}
    if column:
        said.captions[column] = None
    else:
        said.captionless |= dict.fromkeys(light)
    wanted = light if folder.rows else [column] if column else []
    words = {name: names for name in wanted if (names := rows.class_names(table.schema, name))}
    shown = [pictures[0], *filter(None, [mask if folder.masked else None])]
    for i, (values, cells) in enumerate(table.read(wanted, shown)):
        where = f"{folder.name(shard)}:{i}"
        image = _picture(folder, shard, i, "", cells[pictures[0]], where, found)
        if image is None:
            continue
        values = {name: _word(value, words.get(name)) for name, value in values.items()}
        captions = captions_of(values.pop(column, None) if column else None)
        if captions is None:
            found.fault(where, f"{column!r} is no text or list of texts; name another in data.caption_column")
            continue
        given = _mask(folder, shard, i, mask, cells, where, found) if mask and folder.masked else None
        found.entries.append(Entry(image, captions, where, given, row=values if folder.rows else {}))


def _caption_column(folder: Folder, light: list[str], names: list[str]) -> str | None:
    """The column of captions; None if there is none and none was named. Raises DataError for one that is not there."""
    if folder.column != AUTO_COLUMN:
        if folder.column in light:
            return folder.column
        near = difflib.get_close_matches(folder.column, light, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"those of texts are: {listed(light, 12) or 'none'}"
        what = "no texts in column" if folder.column in names else "no column"
        raise DataError(f"{what} {folder.column!r}; {hint} (data.caption_column)")
    lower = {name.lower(): name for name in reversed(light)}
    return next((lower[name] for name in CAPTIONS if name in lower), None)


def _word(value: Any, names: list[str] | None) -> Any:
    """The word that a number of a ClassLabel stands for; other values as they are."""
    if not names or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _picture(
    folder: Folder, shard: Path, row: int, column: str, cell: rows.Cell, where: str, found: Found
) -> Path | None:
    """What to call the picture of a row, or the file that it names; else a fault."""
    if cell.embedded:
        suffix = PurePosixPath((cell.name or "").replace("\\", "/")).suffix.lower()
        return shard / column / f"{row:06d}{suffix if suffix in SUFFIXES else ''}"
    if cell.name is None:
        found.fault(where, "no picture in this row; remove it", skippable=True)
        return None
    return located(folder, cell.name, where, found, what="its path")


def _mask(
    folder: Folder, shard: Path, row: int, column: str, cells: Mapping[str, rows.Cell], where: str, found: Found
) -> Mask | None:
    """The mask of a row, if it has one."""
    cell = cells[column]
    if not cell.embedded and cell.name is None:
        return None
    path = _picture(folder, shard, row, column, cell, where, found)
    return Mask(path, f'the column "{column}"') if path else None
