"""Pictures with a text of the same stem beside them, and folders with EveryDream's multiply.txt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from sdtune.data.images import FOREIGN_SUFFIXES
from sdtune.data.layouts import Entry, Folder, Found, is_picture, listed, plural, text_of
from sdtune.data.readers.base import Reader
from sdtune.data.readers.masked import both

TEXTS = (".txt", ".caption")
"""The second is the one that kohya's scripts look for unless they are told otherwise."""
SETTINGS = {
    "multiply.txt": "", "flip_p.txt": "data.flip", "cond_dropout.txt": "data.caption_dropout", "local.yaml": "a source in data.sources",
    "global.yaml": "the recipe",
}  # fmt: skip
"""EveryDream's, for a folder, and what says the same here; multiply.txt is read."""
LOUD = (".TXT", ".Txt", ".CAPTION", ".Caption")
"""The same, as some systems write it."""
MOST_REPEATS = 10_000


class Sidecar(Reader):
    """a.png with a.txt (or a.caption), one caption a line."""

    name = "sidecar"

    def __init__(self, extension: str | None = None) -> None:
        """Captions are read from files of `extension` alone if it is given."""
        self.extension = extension

    def recognises(self, folder: Folder) -> bool:
        return folder.file is None

    def read(self, folder: Folder, found: Found) -> None:
        read_sidecars(folder, without_masks(folder, found), found, self.extension)
        kinds = sorted({Path(e.where).suffix for e in found.entries if e.captions}) or [".txt"]
        found.notes.insert(0, f"pictures with {' and '.join(kinds)} files: {plural(len(found.entries), 'picture')}")


def read_sidecars(folder: Folder, files: list[Path], found: Found, extension: str | None = None) -> None:
    """The pictures among `files` with their captions, read from files of `extension` alone if it is given."""
    there = {str(path): path for path in files}  # by their names: paths are slow to take apart and to compare
    for name in [name for name in there if name.endswith(LOUD)]:
        there.setdefault(name[: name.rindex(".")] + name[name.rindex(".") :].lower(), there.pop(name))
    pictures: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if is_picture(path):
            pictures[_stem(path)].append(path)
    repeats, read = _multiplied(folder, files, pictures, found), set[str]()
    for stem, sharing in pictures.items():
        text = _text(stem, there, (extension,) if extension else TEXTS)
        file = there.get(text)
        name = folder.name(file or Path(text))
        read.update((text, *map(str, sharing)))
        if len(sharing) > 1 and file:
            shown = listed([p.name for p in sharing])
            what = f"belongs to more than one picture ({shown}); give the pictures different names"
            found.fault(name, what, kind="name_clash", pictures=tuple(sharing))
            continue
        captions = _lines(file, name, found) if file else ()
        if captions is None:
            continue
        for path in sharing:
            times = next((repeats[p] for p in path.parents if p in repeats), 1) if repeats else 1
            found.entries.append(Entry(path, captions, name, repeats=times))
    _tell_of_others(folder, [path for name, path in there.items() if name not in read], pictures, found)


def without_masks(folder: Folder, found: Found) -> list[Path]:
    """The files that are no masks. A fault for what its folder makes a mask and its caption a picture."""
    if not folder.masks:
        return list(folder.files)
    there = set(folder.files)
    for mask, of in folder.masks:
        text = mask.file.with_suffix(".txt")
        if text in there and mask.file.parent != of.parent:
            found.fault(
                folder.name(mask.file),
                f"{both(mask, of, folder)}; rename the folder, or remove {folder.name(text)}",
            )
    there -= {mask.file for mask, _ in folder.masks}
    return [p for p in folder.files if p in there]


def _stem(path: Path) -> str:
    """The path without its suffix."""
    return str(path).removesuffix(path.suffix)


def _text(stem: str, there: Collection[str], extensions: tuple[str, ...]) -> str:
    """The caption file of a picture: the first that is there, else the one that would be looked for."""
    candidates = [stem + extension for extension in extensions]
    return next((c for c in candidates if c in there), candidates[0])


def _lines(path: Path, name: str, found: Found) -> tuple[str, ...] | None:
    """The lines of a caption file that are not blank; None if it cannot be read, which is then a fault."""
    text = text_of(path, name, found, skippable=True)
    return None if text is None else tuple(line.strip() for line in text.splitlines() if line.strip())


def _multiplied(folder: Folder, files: list[Path], pictures: Collection[str], found: Found) -> dict[Path, int]:
    """How often the pictures of each folder with a multiply.txt are shown in an epoch; one beside multiply.png is its caption."""
    repeats = {}
    for path in files:
        if path.name != "multiply.txt" or _stem(path) in pictures:
            continue
        text = (text_of(path, folder.name(path), found) or "").strip()
        whole = text.removesuffix(".0")
        if not (whole.isascii() and whole.isdecimal() and 0 < int(whole) <= MOST_REPEATS):
            what = f"holds {text!a:.20}, not a whole number of times from 1 to {MOST_REPEATS}; mend or remove it"
            found.fault(folder.name(path), what)
            continue
        repeats[path.parent] = int(whole)
        found.notes.append(f"{folder.name(path)}: the pictures there are shown {whole} times as often")
    return repeats


def _tell_of_others(folder: Folder, files: list[Path], pictures: Collection[str], found: Found) -> None:
    """Of the files that were not read: faults for pictures of other formats, notes for what belongs to no picture."""
    alone, other, second, settings = [], [], [], list[str]()
    for path in files:
        name, captioned = folder.name(path), _stem(path) in pictures
        if path.suffix.lower() in FOREIGN_SUFFIXES:
            what = "not one of the formats that are read; convert it to PNG or JPEG"
            found.fault(name, what, skippable=True, kind="other_format")
        elif path.name in SETTINGS and not captioned:
            settings += [f"{name} ({SETTINGS[path.name]})"] if SETTINGS[path.name] else []
        elif path.suffix in TEXTS and captioned:
            second.append(name)
        elif path.suffix in TEXTS:
            alone.append(name)
        else:
            other.append(name)
    if settings:
        found.notes.append(f"EveryDream's settings of a folder, not read, with what sets it here: {listed(settings)}")
    if alone:
        kind = ".txt file" if all(n.endswith(".txt") for n in alone) else "caption file"
        found.notes.append(f"{plural(len(alone), kind)} without a picture: {listed(alone)}")
    if second:
        found.notes.append(f"{plural(len(second), 'second caption file')} of a picture, not read: {listed(second)}")
    if other:
        found.notes.append(f"{plural(len(other), 'other file')} not read: {listed(other)}")
