"""What every captioner is, and the records that captioning yields. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.happened import Happened

Pixels = NDArray[np.float32]


class Captioner(ABC):
    """A model in memory, in two verbs: `prepare` runs in threads while `caption` keeps the device busy."""

    tags: ClassVar[bool] = False
    """Whether its captions are tags with commas between them."""
    source: str
    """The folder, or Hub id and commit, that it was read from."""
    device: str
    precision: str

    @abstractmethod
    def prepare(self, image: Image.Image) -> Pixels:
        """What the model sees of an upright RGB picture: (3, H, W), or (H, W, 3) for a tagger."""

    @abstractmethod
    def caption(self, pictures: Sequence[Pixels]) -> list[str]:
        """A caption for each of the prepared pictures, which are one batch."""


@dataclass(frozen=True)
class Opened(Happened):
    """The folder is read: what it holds, and what will be done."""

    folder: str
    write: str
    """sidecar or metadata."""
    pictures: int
    todo: int
    human: int
    """Pictures whose captions people wrote, and which stay as they are."""
    ours: int
    """Pictures whose captions sdtune wrote before, and which stay as they are."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded(Happened):
    """The model is in memory."""

    model: str
    device: str
    precision: str


@dataclass(frozen=True)
class Captioned(Happened):
    """A picture has its caption, which is written unless it is a dry run. `done` counts those left out, too."""

    picture: str
    captions: tuple[str, ...]
    """The whole of them as they are now, with what was there before if it was added to."""
    done: int
    total: int
    per_second: float
    """Pictures a second, of late."""


@dataclass(frozen=True)
class LeftOut(Happened):
    """A picture or row that gets no caption, and why."""

    where: str
    what: str


@dataclass(frozen=True)
class Finished(Happened):
    """All is done. Not yielded when the iterator is closed before."""

    captioned: int
    left_out: int
    seconds: float


Event = Opened | Loaded | Captioned | LeftOut | Finished
