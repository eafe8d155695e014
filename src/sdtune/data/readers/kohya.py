"""The folders of kohya's scripts: 10_sks dog/ holds pictures of "sks dog", each shown ten times in an epoch."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from sdtune.data.layouts import Entry, Folder, Found, is_picture, listed, plural
from sdtune.data.readers.base import Reader
from sdtune.data.readers.sidecar import read_sidecars, without_masks

CONCEPT = re.compile(r"(\d{1,4})_(.*)")
YEARS = range(1900, 2101)
"""2024_summer is a year's pictures rather than 2,024 repeats."""
REGULARISATION = ("reg", "regularization", "regularisation", "class")


PROJECT = "img"
"""Where kohya_ss keeps the folders of a project; reg/, log/ and model/ lie beside it."""


class KohyaFolders(Reader):
    """parent/10_sks dog/*.png, or such a folder itself, or a project of kohya_ss with the parent in img/.

    Captions beside pictures; class tokens for those without. It is kohya's if one of the folders is named so; what lies elsewhere
    is left alone, as kohya's scripts do, and told. A fault if that is most of it and nobody has said that it is kohya's.
    """

    name = "kohya"

    def recognises(self, folder: Folder) -> bool:
        if folder.file is not None:
            return False
        tops = _tops(folder, folder.path)
        if concept(folder.path.name) and tops:
            return not any(map(concept, tops))
        return any(map(concept, tops)) or _is_project(folder)

    def read(self, folder: Folder, found: Found) -> None:
        base = folder.path / PROJECT if _is_project(folder) else folder.path
        files = without_masks(folder, found)
        read_sidecars(folder, [p for p in files if _concept_of(p, base)], found)
        found.entries = [_with_concept(entry, base) for entry in found.entries]
        left = [p for p in files if is_picture(p) and not _concept_of(p, base)]
        _tell_of_left(folder, left, found)
        _tell(folder, base, found)


def _tops(folder: Folder, base: Path) -> set[str]:
    """The folders directly in `base` that hold pictures; "" if there are pictures beside them."""
    depth = len(base.parts)
    inside = folder.pictures if base == folder.path else [p for p in folder.pictures if p.is_relative_to(base)]
    return {p.parts[depth] if len(p.parts) > depth + 1 else "" for p in inside}


def _is_project(folder: Folder) -> bool:
    if any(map(concept, (folder.path.name, *_tops(folder, folder.path)))):
        return False
    return any(map(concept, _tops(folder, folder.path / PROJECT)))


def concept(name: str) -> tuple[int, str] | None:
    """Repeats and class tokens in a folder's name, if it has both; years are no repeats."""
    match = CONCEPT.fullmatch(name)
    if not match or not int(match[1]) > 0 or int(match[1]) in YEARS:
        return None
    return int(match[1]), match[2].strip()


def _concept_of(path: Path, base: Path) -> tuple[int, str] | None:
    if not path.is_relative_to(base):
        return None
    parts = path.relative_to(base).parts
    return concept(base.name) or (concept(parts[0]) if len(parts) > 1 else None)


def _with_concept(entry: Entry, base: Path) -> Entry:
    found = _concept_of(entry.image, base)
    assert found
    repeats, tokens = found
    captions = entry.captions or ((tokens,) if tokens else ())
    return Entry(entry.image, captions, entry.where, entry.mask, repeats * entry.repeats)


def _tell_of_left(folder: Folder, left: list[Path], found: Found) -> None:
    """Pictures in no folder 10_name/: a note, or a fault for more than there are in such folders, unless data.layout says "kohya"."""
    depth = len(folder.path.parts)
    loose = [folder.name(p) for p in left if len(p.parts) == depth + 1]
    others = Counter(p.parts[depth] for p in left if len(p.parts) > depth + 1)
    reg = [name for name in sorted(others) if name.lower() in REGULARISATION]
    doubtful = len(loose) + sum(n for name, n in others.items() if name not in reg)
    names = [f"{name}/" for name in sorted(others)]
    if doubtful > len(found.entries) and not folder.named:
        what = f"{plural(doubtful, 'picture')} in no folder 10_name/ ({listed([*names, *loose])}), {len(found.entries)} in such; "
        what += 'name the folders so, or set data.layout="kohya" to leave the others alone, "sidecar" to read all alike'
        return found.fault(folder.path.name, what)
    if loose:
        what = f"{plural(len(loose), 'picture')} beside the folders 10_name/, left alone as kohya's scripts do"
        found.notes.append(f"{what}: {listed(loose)}")
    if names:
        what = "no number of repeats before the first _, left alone as kohya's scripts do"
        found.notes.append(f"{what}: {listed(names)} ({plural(sum(others.values()), 'picture')})")
    if reg:
        place = folder.path / reg[0]
        what = f"data.class_path={place} with data.class_prompt would use them"
        found.notes.append(f"{reg[0]}/ may hold class pictures: {what}")
    return None


def _tell(folder: Folder, base: Path, found: Found) -> None:
    counts = Counter(_concept_of(entry.image, base) for entry in found.entries)
    said = [f"{n} of {key[1]!r} x {key[0]}" for key, n in counts.items() if key]
    where = f"kohya's folders (repeats_name){f' in {PROJECT}/' * (base != folder.path)}"
    found.notes.insert(0, f"{where}: {plural(len(found.entries), 'picture')}: {listed(said)}")
