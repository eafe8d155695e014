"""The interface of readers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from sdtune.data.layouts import Folder, Found


class Reader(ABC):
    """Reads one layout of captioned pictures."""

    name: ClassVar[str]
    """What `data.layout` calls it."""
    file: ClassVar[str] = ""
    """A file that may be named in place of its folder, for messages."""

    @abstractmethod
    def recognises(self, folder: Folder) -> bool:
        """Whether the folder (or `folder.file`, if one is named) looks like this layout."""

    @abstractmethod
    def read(self, folder: Folder, found: Found) -> None:
        """Put what there is into `found`, with a note first that says what was recognised. Raises nothing."""
