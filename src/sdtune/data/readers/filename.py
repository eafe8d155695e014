"""Pictures whose name is their caption."""

from __future__ import annotations

import re

from sdtune.data.layouts import Entry, Folder, Found, is_picture, plural
from sdtune.data.readers.base import Reader
from sdtune.data.readers.sidecar import without_masks


class Filename(Reader):
    """red_apple_012.png: "red apple". Only where data.layout says so: "IMG_1234" is nobody's caption."""

    name = "filename"

    def recognises(self, folder: Folder) -> bool:
        return False

    def read(self, folder: Folder, found: Found) -> None:
        for path in filter(is_picture, without_masks(folder, found)):
            caption = caption_in(path.stem)
            found.entries.append(Entry(path, (caption,) if caption else (), folder.name(path)))
        found.notes.insert(0, f"pictures whose name is their caption: {plural(len(found.entries), 'picture')}")


def caption_in(stem: str) -> str:
    """Underscores as blanks, without a number in front ("012 - ") or behind ("_012", " (2)")."""
    text = re.sub(r"\s+", " ", stem.replace("_", " ")).strip()
    text = re.sub(r"^\d+\s*[-.]?\s+", "", text)
    return re.sub(r"(\s+[-#]?\s*\d+|\s*\(\d+\))$", "", text).strip()
