"""Which of the pictures found has which mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sdtune.data import masks
from sdtune.data.layouts import Entry, Folder, Found, is_picture, leads_into, listed, plural, walk
from sdtune.data.masks import Mask


def both(mask: Mask, of: Path, folder: Folder) -> str:
    return f"has a caption like a picture and the name of a mask ({mask.kind}) of {folder.name(of)}"


def give_masks(folder: Folder, mask_folder: Path | None, found: Found) -> None:
    """Each entry its mask. A fault where it has several, or where a mask has several pictures."""
    named: dict[Path, list[Mask]] = defaultdict(list)
    for mask, of in found.masks:
        named[of].append(mask)
    for mask, of in _masks_elsewhere(folder, mask_folder, found):
        named[of].append(mask)
    sharing: dict[Path, list[int]] = defaultdict(list)
    for i, entry in enumerate(found.entries):
        sharing[entry.image.with_suffix("")].append(i)
    for stem, places in sharing.items():
        if named[stem] and len(places) > 1:
            shown = listed([found.entries[i].image.name for i in places])
            what = f"belongs to more than one picture ({shown}); give the pictures different names"
            found.fault(folder.name(named[stem][0].file), what, kind="name_clash")
            continue
        for i in places:
            _give(found.entries[i], i, named[stem], folder, mask_folder, found)
    used = {entry.mask.file for entry in found.entries if entry.mask}
    if alone := [folder.name(m.file) for m, of in found.masks if of not in sharing and m.file not in used]:
        found.notes.append(f"{plural(len(alone), 'mask')} without a picture: {listed(alone)}")


def _give(entry: Entry, i: int, named: list[Mask], folder: Folder, mask_folder: Path | None, found: Found) -> None:
    """Entry number `i` the one mask of those by name and the one of its row."""
    all_of = list({m.file.resolve(): m for m in [*filter(None, [entry.mask]), *named]}.values())
    if len(all_of) > 1:
        shown = listed([folder.name(m.file) for m in all_of])
        found.fault(folder.name(entry.image), f"has more than one mask ({shown}); remove all but one", kind="bad_mask")
    elif all_of and not leads_into(all_of[0].file, folder.path, *filter(None, [mask_folder])):
        found.fault(folder.name(all_of[0].file), "a link that leaves the folder; copy the file into it")
    elif all_of:
        found.entries[i] = replace(entry, mask=all_of[0])


def _masks_elsewhere(folder: Folder, mask_folder: Path | None, found: Found) -> Iterator[tuple[Mask, Path]]:
    """The masks in `mask_folder` and whose they may be. That of train/a.png may lie in train/ there, too, or not."""
    for path in filter(is_picture, walk(mask_folder, (), found) if mask_folder else ()):
        assert mask_folder
        parts = masks.owner(path).relative_to(mask_folder).parts
        yield Mask(path, "data.mask_path"), folder.path.joinpath(*parts)
        if parts[0] == folder.path.name:
            yield Mask(path, "data.mask_path"), folder.path.joinpath(*parts[1:])
