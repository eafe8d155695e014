"""Hugging Face's imagefolder: metadata.jsonl, .csv or .parquet with `file_name`, the caption in a column, perhaps a mask in another."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdtune.data import masks
from sdtune.data.images import SUFFIXES
from sdtune.data.layouts import Entry, Folder, Found, captions_of, is_picture, located, outside, plural
from sdtune.data.masks import Mask
from sdtune.data.readers.base import Reader
from sdtune.data.readers.masked import both
from sdtune.data.readers.tables import Row, csv_rows, jsonl

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Imagefolder(Reader):
    """Rows of a metadata file, `file_name` relative to the folder; absolute only into `data.roots`."""

    name = "imagefolder"
    has_rows = True
    names_files = True

    def recognises(self, folder: Folder) -> bool:
        return folder.file is None and not folder.names.isdisjoint(METADATA)

    def read(self, folder: Folder, found: Found) -> None:
        present = [name for name in METADATA if name in folder.names]
        if len(present) != 1:
            what = (
                "only one of them can count; remove the other" if present else f"needed for this layout ({folder.path})"
            )
            return found.fault(" and ".join(present or METADATA[:1]), what)
        (name,) = present
        rows = list(_rows(folder.path / name, found))
        if any([_lacks(name, rows, "file_name", found), _lacks(name, rows, folder.column, found)]):
            return None
        seen: dict[Path, int] = {}
        known = {mask.file.resolve() for mask, _ in found.masks}
        for line, row in rows:
            mask = _mask_of(folder, f"{name}:{line}", row, found if folder.masked else Found())
            known |= {mask.file.resolve()} if mask else set()
            _read_row(folder, name, line, row, seen, found, mask if folder.masked else None)
        for mask, of in found.masks:
            if (at := seen.get(mask.file.resolve())) is not None:
                what = f"{folder.name(mask.file)} {both(mask, of, folder)}; rename it, or remove the row"
                found.fault(f"{name}:{at}", what)
        known |= seen.keys()
        for path in (*folder.pictures, *filter(is_picture, sorted(folder.links))):
            if path.resolve() not in known:
                what = f"not in {name}; add a row for it or take it away"
                within = () if path in folder.links else (path,)  # a link that leaves is not to be opened, nor shown
                found.fault(folder.name(path), what, skippable=True, kind="unlisted", pictures=within)
        _tell_of_sidecars(folder, name, found)
        return found.notes.insert(0, f"imagefolder with {name}: {plural(len(found.entries), 'picture')}")


def _rows(path: Path, found: Found) -> Iterator[Row]:
    if path.suffix == ".parquet":
        return _parquet(path, found)
    return jsonl(path, found) if path.suffix == ".jsonl" else csv_rows(path, found)


def _parquet(path: Path, found: Found) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        return found.fault(path.name, "needs pyarrow: pip install 'sdtune[parquet]'; or save it as metadata.jsonl")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:
        return found.fault(
            path.name, f"not a Parquet file that can be read ({str(error).splitlines()[0]:.80}); write it again"
        )
    yield from enumerate(table.to_pylist(), 1)
    return None


def _tell_of_sidecars(folder: Folder, name: str, found: Found) -> None:
    beside = [p for p in folder.files if p.suffix == ".txt" and any(p.with_suffix(s).exists() for s in SUFFIXES)]
    if beside:
        found.notes.append(f"{plural(len(beside), '.txt file')} beside pictures, not read: {name} has the captions")


def _lacks(name: str, rows: list[Row], needed: str, found: Found) -> bool:
    """Whether no row has the column `needed`, which is then a fault."""
    columns = sorted({str(key) for _, row in rows for key in row})
    if not rows or needed in columns:
        return False
    near = difflib.get_close_matches(needed, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(columns)}"
    found.fault(name, f"no column {needed!r}; {hint}" + " (data.caption_column)" * (needed != "file_name"))
    return True


def _read_row(
    folder: Folder, name: str, line: int, row: dict[Any, Any], seen: dict[Path, int], found: Found, mask: Mask | None
) -> None:
    where, file_name = f"{name}:{line}", row.get("file_name")
    image = located(folder, file_name, where, found)
    if image is None:
        return None
    path = image.resolve()
    if path in seen:
        what = f"{file_name} is in line {seen[path]} too; put its captions into one row, as a list"
        return found.fault(where, what, kind="name_clash")
    seen[path] = line
    captions = captions_of(row.get(folder.column))
    if captions is None:
        what = f"{folder.column!r} of {file_name} is no text or list of texts: {row.get(folder.column)!a:.60}"
        return found.fault(where, what)
    other = {str(k): v for k, v in row.items() if k not in ("file_name", folder.column, *masks.COLUMNS)}
    found.entries.append(Entry(image, captions, where, mask, row=other if folder.rows else {}))
    return None


def _mask_of(folder: Folder, where: str, row: dict[Any, Any], found: Found) -> Mask | None:
    """The mask that a row names, there or not."""
    column = next((c for c in masks.COLUMNS if row.get(c) not in (None, "")), "")
    name = row.get(column)
    if name is None:
        return None
    if not isinstance(name, str):
        found.fault(where, f"{column} is {name!r:.60}, not the name of a file")
    elif why := outside(name):
        found.fault(where, f"{column} {name!a} {why}; use a path inside the folder, relative to it")
    elif not folder.holds(folder.path / name):
        found.fault(where, f"{column} {name} is a link that leaves the folder; copy the mask into it")
    else:
        return Mask(folder.path / name, f'the column "{column}"')
    return None
