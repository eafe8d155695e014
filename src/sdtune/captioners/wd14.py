"""Taggers of the WD14 kind: an ONNX file that gives each of its tags a probability."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from sdtune.captioners import places
from sdtune.captioners.base import Captioner, Pixels
from sdtune.captioners.config import Wd14
from sdtune.errors import ConfigError, ModelError

MODEL, TAGS = "model.onnx", "selected_tags.csv"
GENERAL, CHARACTER = 0, 4
"""Danbooru's categories; 9 are the ratings, which are no description."""
SIDE = 448
FACES = frozenset(
    "0_0 (o)_(o) +_+ +_- ._. <o>_<o> <|>_<|> =_= >_< 3_3 6_9 >_o @_@ ^_^ o_o u_u x_x |_| ||_||".split()  # noqa: SIM905
)
"""Tags that are faces drawn with signs: their underscore is a mouth."""


class Tag(NamedTuple):
    name: str
    category: int


class Wd14Captioner(Captioner):
    """An onnxruntime session and the names of what it gives."""

    tags: ClassVar[bool] = True

    def __init__(self, config: Wd14, source: str, session: Any, names: Sequence[Tag]) -> None:
        self.config, self.source, self.session, self.names = config, source, session, names
        self.device = "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu"
        self.precision = "as in the file"
        self.input, self.batch, self.side = _input_of(session, source)

    def prepare(self, image: Image.Image) -> Pixels:
        """(side, side, 3): blue, green, red, 0 to 255, on a white square."""
        longer = max(image.size)
        square = Image.new("RGB", (longer, longer), "white")
        square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
        if longer != self.side:
            square = square.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(square, np.float32)[:, :, ::-1])

    def caption(self, pictures: Sequence[Pixels]) -> list[str]:
        step = self.batch or len(pictures)
        found: list[str] = []
        for i in range(0, len(pictures), step):
            found += [", ".join(self.chosen(row)) for row in self._run(pictures[i : i + step])]
        return found

    def _run(self, pictures: Sequence[Pixels]) -> Any:
        """Probabilities (B, tags). A model made for batches of one size gets white pictures for what is lacking."""
        lacking = (self.batch or len(pictures)) - len(pictures)
        batch_BHWC = np.stack([*pictures, *[np.full_like(pictures[0], 255)] * lacking])
        (found_BT,) = self.session.run(None, {self.input: batch_BHWC})
        if found_BT.shape[1] != len(self.names):
            raise ModelError(
                f"{self.source}: {MODEL} gives {found_BT.shape[1]} values, {TAGS} names {len(self.names)}; they do not belong together"
            )
        return found_BT[: len(pictures)]

    def chosen(self, row: Any) -> list[str]:
        """Characters, then general tags, each from its threshold on, the likeliest first."""
        return [
            shown(self.names[i].name)
            for category, least in ((CHARACTER, self.config.character_threshold), (GENERAL, self.config.threshold))
            for i in np.argsort(-row, kind="stable")
            if self.names[i].category == category and row[i] >= least and (category == GENERAL or least < 1)
        ]


def shown(tag: str) -> str:
    """A tag in words: blanks for underscores, unless it is a face."""
    return tag if tag in FACES else tag.replace("_", " ")


def load(config: Wd14, device: str) -> Captioner:
    """auto: CUDA where onnxruntime has it, else CPU. Raises ConfigError and ModelError."""
    onnxruntime = _runtime()
    providers = _providers(device, onnxruntime.get_available_providers())
    folder, name = places.locate(config, (MODEL, TAGS), ((MODEL,), (TAGS,)))
    names = read_tags(places.needed(folder, name, TAGS), name)
    try:
        session = onnxruntime.InferenceSession(str(places.needed(folder, name, MODEL)), providers=providers)
    except Exception as error:  # onnxruntime's own errors have no base but Exception
        raise ModelError(f"{name}: {MODEL} cannot be read: {str(error).splitlines()[0][:200]}") from error
    return Wd14Captioner(config, name, session, names)


def _providers(device: str, present: Sequence[str]) -> list[str]:
    """What onnxruntime shall compute with, of what is `present`. Raises ConfigError for a device that it has not."""
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    if device == "mps":
        raise ConfigError("--device: wd14 runs on cuda or cpu")
    if device == "cuda" and cuda not in present:
        raise ConfigError(
            "--device: this onnxruntime has no CUDA; install onnxruntime-gpu in its place, or use auto or cpu"
        )
    return [cuda, cpu] if device != "cpu" and cuda in present else [cpu]


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ModelError("wd14: needs onnxruntime; pip install 'sdtune[captioners]'") from None
    return onnxruntime


def read_tags(path: Path, name: str) -> list[Tag]:
    """The rows of selected_tags.csv in their order. Raises ModelError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [Tag(row["name"], int(row["category"])) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{name}: {TAGS} needs the columns name and category: {error!r}") from None


def _input_of(session: Any, source: str) -> tuple[str, int | None, int]:
    """Name of the input, its batch size if it is fixed, its side in pixels. Raises ModelError."""
    found = session.get_inputs()
    shape = found[0].shape if len(found) == 1 else None
    if shape is None or len(shape) != 4 or shape[3] != 3 or found[0].type != "tensor(float)":
        shapes = [(i.name, i.type, i.shape) for i in found]
        raise ModelError(
            f"{source}: {MODEL} takes {shapes}; a tagger of the WD14 kind takes floats (batch, height, width, 3)"
        )
    batch, side = (value if isinstance(value, int) and value > 0 else None for value in shape[:2])
    return found[0].name, batch, side or SIDE
