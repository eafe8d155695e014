"""The interface of readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from sdtune.data.layouts import Folder, Found, is_picture


class Reader(ABC):
    """Reads one layout of captioned pictures."""

    name: ClassVar[str]
    """What `data.layout` calls it."""
    file: ClassVar[str] = ""
    """A file that may be named in place of its folder, for messages."""

    walks: ClassVar[bool] = True
    """Whether it looks at what lies in the folder, rather than at what a file names."""
    names_files: ClassVar[bool] = False
    """Whether it looks for each picture by a name in a file, and says itself which of them lead out of the folder."""

    has_rows: ClassVar[bool] = False
    """Whether its metadata may say more of a picture than a caption, such as whom it is owed to."""

    @abstractmethod
    def recognises(self, folder: Folder) -> bool:
        """Whether the folder (or `folder.file`, if one is named) looks like this layout."""

    @abstractmethod
    def read(self, folder: Folder, found: Found) -> None:
        """Put what there is into `found`, with a note first that says what was recognised. Raises nothing."""


def tell_of_links(folder: Folder, reader: Reader, found: Found) -> None:
    """A fault for each picture, text or tar that is a link out of the folder."""
    for path in sorted(folder.links):
        if path.suffix.lower() in LINKED or (is_picture(path) and not reader.names_files):
            found.fault(folder.name(path), "a link that leaves the folder; copy the file into it", kind="outside")


LINKED = (".txt", ".caption", ".tar", ".arrow", ".parquet")
"""Files beside pictures that readers open by themselves."""
