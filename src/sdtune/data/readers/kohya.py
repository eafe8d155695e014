"""The folders of kohya's scripts: 10_sks dog/ holds pictures of "sks dog", each shown ten times in an epoch."""

from __future__ import annotations

import re
from pathlib import Path

from sdtune.data.layouts import Entry, Folder, Found, is_picture, listed, plural
from sdtune.data.readers.base import Reader
from sdtune.data.readers.sidecar import read_sidecars, without_masks

CONCEPT = re.compile(r"(\d{1,4})_(.*)")
YEARS = range(1900, 2101)
"""2024_summer is a year's pictures rather than 2,024 repeats."""
REGULARISATION = ("reg", "regularization", "regularisation", "class")


class KohyaFolders(Reader):
    """parent/10_sks dog/*.png, or such a folder itself. Captions beside pictures; class tokens for those without."""

    name = "kohya"

    def recognises(self, folder: Folder) -> bool:
        if folder.file is not None:
            return False
        depth = len(folder.path.parts)
        tops = {p.parts[depth] if len(p.parts) > depth + 1 else "" for p in folder.pictures}
        if concept(folder.path.name) and tops:
            return not any(concept(top) for top in tops)
        return bool(tops) and all(concept(top) for top in tops)

    def read(self, folder: Folder, found: Found) -> None:
        files = without_masks(folder, found)
        loose, unnumbered = [], set()
        for path in files:
            parts = path.relative_to(folder.path).parts
            if len(parts) == 1 and not concept(folder.path.name):
                loose += [folder.name(path)] if is_picture(path) else []
            elif not _concept_of(path, folder):
                unnumbered.add(parts[0])
        read_sidecars(folder, [p for p in files if _concept_of(p, folder)], found)
        found.entries = [_with_concept(entry, folder) for entry in found.entries]
        if loose:
            what = f"{plural(len(loose), 'picture')} beside the folders 10_name/, left alone as kohya's scripts do"
            found.notes.append(f"{what}: {listed(loose)}")
        if unnumbered:
            names = listed([f"{name}/" for name in sorted(unnumbered)])
            found.notes.append(f"no number of repeats before the first _, left alone as kohya's scripts do: {names}")
        if reg := sorted(name for name in unnumbered if name.lower() in REGULARISATION):
            found.notes.append(
                f"{reg[0]}/ may hold class pictures: data.class_path={folder.path / reg[0]} would use them"
            )
        _tell(folder, found)


def concept(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens in a folder's name, if it has both; years are no repeats."""
    match = CONCEPT.fullmatch(name)
    if not match or not int(match[1]) > 0 or int(match[1]) in YEARS:
        return None
    return int(match[1]), match[2].strip()


def _concept_of(path: Path, folder: Folder) -> tuple[int, str] | None:
    parts = path.relative_to(folder.path).parts
    return concept(folder.path.name) or (concept(parts[0]) if len(parts) > 1 else None)


def _with_concept(entry: Entry, folder: Folder) -> Entry:
    found = _concept_of(entry.image, folder)
    assert found
    repeats, tokens = found
    captions = entry.captions or ((tokens,) if tokens else ())
    return Entry(entry.image, captions, entry.where, entry.mask, repeats * entry.repeats)


def _tell(folder: Folder, found: Found) -> None:
    counts: dict[tuple[int, str], int] = {}
    for entry in found.entries:
        key = _concept_of(entry.image, folder)
        assert key
        counts[key] = counts.get(key, 0) + 1
    said = [f"{n} of {tokens!r} x {repeats}" for (repeats, tokens), n in counts.items()]
    found.notes.insert(0, f"kohya's folders (repeats_name): {plural(len(found.entries), 'picture')}: {listed(said)}")
