"""The ways in which a folder says which picture has which captions: one reader each, recognised by what is there.

A reader gives entries, faults and notes, and raises nothing: all that is wrong with a folder is told at once. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from sdtune.data.layouts import AUTO_COLUMN, Folder, Found, listed, plural, walk
from sdtune.data.readers.arrow import Arrow
from sdtune.data.readers.base import Reader, tell_of_links
from sdtune.data.readers.filename import Filename
from sdtune.data.readers.flickr import Flickr
from sdtune.data.readers.imagefolder import Imagefolder
from sdtune.data.readers.kohya import KohyaFolders
from sdtune.data.readers.kohya_files import KohyaJson, KohyaToml
from sdtune.data.readers.masked import give_masks
from sdtune.data.readers.sidecar import Sidecar
from sdtune.data.readers.simpletuner import SimpleTuner
from sdtune.data.readers.unsplash import Unsplash
from sdtune.data.readers.webdataset import WebDataset

READERS: tuple[Reader, ...] = (
    Imagefolder(), KohyaToml(), KohyaJson(), SimpleTuner(), Flickr(), Unsplash(), WebDataset(), Arrow(), KohyaFolders(),
    Sidecar(), Filename(),
)  # fmt: skip
"""In the order in which they are asked whether a folder is theirs. `Sidecar` takes whatever is left, `Filename` has to be named."""
BY_NAME = {reader.name: reader for reader in READERS}


def read(
    path: Path,
    column: str = AUTO_COLUMN,
    skip: Collection[str] = (),
    *,
    layout: str = "auto",
    roots: Sequence[Path] = (),
    masked: bool = False,
    mask_folder: Path | None = None,
    rows: bool = False,
    found: Found | None = None,
) -> Found:
    """The entries of the folder `path` (or of the one file of it that is named), without its subfolders named in `skip`.

    Masks are told from pictures in any case; only if `masked` they are given to them. `mask_folder` holds more masks.
    With `rows`, entries have what else their metadata says. `found`, if it is given, is filled and shows how far it is.
    """
    found = Found() if found is None else found
    folder = folder_of(
        path, column, skip, roots=roots, masked=masked, mask_folder=mask_folder, rows=rows,
        named=layout != "auto", found=found,
    )  # fmt: skip
    file, reader = folder.file, reader_of(folder, layout)
    if reader is None or (file and not reader.file):
        assert file
        what = (
            f"data.layout={layout!r} needs a folder" if reader else f"no dataset that is known; a folder, or {_files()}"
        )
        found.fault(file.name, what)
        return found
    if reader.walks:
        found.masks = list(folder.masks)
        tell_of_links(folder, reader, found)
    reader.read(folder, found)
    if masked:
        give_masks(folder, mask_folder, found)
    elif found.masks:
        shown = listed([folder.name(mask.file) for mask, _ in found.masks])
        found.notes.append(f'{plural(len(found.masks), "mask")} not used (data.mask="files" uses them): {shown}')
    return found


def folder_of(
    path: Path,
    column: str = AUTO_COLUMN,
    skip: Collection[str] = (),
    *,
    roots: Sequence[Path] = (),
    masked: bool = False,
    mask_folder: Path | None = None,
    rows: bool = False,
    named: bool = False,
    found: Found | None = None,
) -> Folder:
    """What a reader is to look at, options as in `read`. What cannot be listed becomes a fault in `found`."""
    root, file = (path, None) if path.is_dir() else (path.parent, path)

    def listing() -> list[Path]:
        files = list(walk(root, skip, Found() if found is None else found))
        if mask_folder and mask_folder.resolve().is_relative_to(root.resolve()):
            inside = root / mask_folder.resolve().relative_to(root.resolve())
            return [p for p in files if not p.is_relative_to(inside)]
        return files

    return Folder(root, listing, column, tuple(roots), masked, file, rows, named)


def reader_of(folder: Folder, layout: str) -> Reader | None:
    """The reader of a layout; of "auto" the first that recognises the folder, None if none knows the file that is named."""
    return next((r for r in READERS if r.recognises(folder)), None) if layout == "auto" else BY_NAME[layout]


def _files() -> str:
    return ", ".join(reader.file for reader in READERS if reader.file)
