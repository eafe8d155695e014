"""The pictures on disk: names of our own, each file whole before anybody hears of it. Imports no torch."""

from __future__ import annotations

import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL.Image import Image

from sdtune.errors import RunError
from sdtune.files import atomic_write

_ID = re.compile(r"[0-9a-f]{32}")


def is_id(text: str) -> bool:
    """Whether it can be an id of a job or picture; what cannot is no path, either."""
    return _ID.fullmatch(text) is not None


def picture_id(job: str, number: int) -> str:
    """The same again where a job is drawn again after a crash, so that nothing lies there twice."""
    return uuid.uuid5(uuid.UUID(hex=job), str(number)).hex


class Store:
    """A folder: `pictures/` holds what was drawn (PNG and JSON), `uploads/` what clients sent, made anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.pictures, self.uploads = self.folder / "pictures", self.folder / "uploads"
        for place in (self.pictures, self.uploads):
            place.mkdir(parents=True, exist_ok=True)

    def tidy(self) -> None:
        """Remove what writers left that were killed. While nobody writes."""
        for place in (self.pictures, self.uploads):
            for part in place.glob(".*.tmp"):
                part.unlink(missing_ok=True)

    def names(self) -> list[tuple[str, str]]:
        """Id and kind ("upload" or "drawn") of what lies there, in no order."""
        places = {"drawn": self.pictures, "upload": self.uploads}
        files = [
            (f.stem, kind) for kind, place in places.items() for f in place.iterdir() if f.suffix in (".png", ".json")
        ]
        return [(name, kind) for name, kind in dict.fromkeys(files) if is_id(name)]

    def path(self, name: str, kind: str) -> Path:
        """Where the file of a picture lies; `kind` as in `queue.Picture`."""
        assert is_id(name)
        return (self.uploads if kind == "upload" else self.pictures) / f"{name}.png"

    def remove(self, name: str, kind: str) -> None:
        path = self.path(name, kind)
        for file in (path, path.with_suffix(".json")):
            file.unlink(missing_ok=True)

    def keep(self, image: Image) -> str:
        """Write a picture of a client anew, so that no byte of its file is served again; its id."""
        image.info.clear()  # neither EXIF nor a place, nor a profile or text
        name = uuid.uuid4().hex
        with atomic_write(self.path(name, "upload")) as file:
            image.save(file, format="PNG")
        return name


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a server's folder, so that a second one does not draw the same queue. Raises RunError. A crash lets go of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(folder / "held.sqlite", isolation_level=None, timeout=0.2) as db:
        try:
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise RunError(f"{folder}: another `sdtune serve` works here; stop it, or name another --folder") from None
        try:
            yield
        finally:
            db.rollback()
    db.close()
