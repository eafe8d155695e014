"""What of a picture counts: which file is whose mask, what can be wrong with it, its weights at the latents' places. Imports no torch.

White counts, black does not, grey in between, as in kohya's scripts, OneTrainer, ai-toolkit and diffusion-pipe.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdtune.data.images import SUFFIXES, Box, Pixels, Size, placed
from sdtune.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

LABEL = "-masklabel"
"""a-masklabel.png is the mask of a.png: OneTrainer's name for it."""
FOLDERS = ("masks", "mask")
"""So is masks/a.png."""
COLUMNS = ("mask", "mask_file_name")
"""Columns of metadata.jsonl or metadata.csv that name masks. The second is the one that Hugging Face datasets reads as pictures."""
DARK = 25
"""A mask whose brightest value is no higher holds the numbers of classes, not brightness."""


@dataclass(frozen=True)
class Mask:
    """A file and what made it a mask, for messages: "-masklabel.png", "masks/"."""

    file: Path
    kind: str


def by_name(files: Collection[Path], folder: Path) -> Iterator[tuple[Mask, Path]]:
    """The masks among the `files` below `folder`, by their own name or their folder's, and whose they are: a path without suffix.

    What lies in masks/ is a mask only if a picture has its name: there are pictures of masks, too.
    """
    depth = len(folder.parts)
    pictures = [p for p in files if p.suffix.lower() in SUFFIXES]
    named = [
        p for p in pictures if p.stem.endswith(LABEL) or any(part.lower() in FOLDERS for part in p.parts[depth:-1])
    ]
    known = {p.with_suffix("") for p in pictures} if named else set[Path]()
    for path in named:
        labelled, parts = path.stem.endswith(LABEL), owner(path).relative_to(folder).parts
        if labelled and owner(path) in known:
            yield Mask(path, f"{LABEL}.png"), owner(path)
            continue
        for i, part in enumerate(parts[:-1]):
            if part.lower() in FOLDERS and (of := folder.joinpath(*parts[:i], *parts[i + 1 :])) in known:
                yield Mask(path, f"{part}/"), of
                break
        else:
            if labelled:
                yield Mask(path, f"{LABEL}.png"), owner(path)


def owner(path: Path) -> Path:
    """The picture that a mask has its name from, without suffix."""
    return path.parent / path.stem.removesuffix(LABEL)


class Measured(NamedTuple):
    """What is to be known of a mask: width and height, its brightest value (0 to 255), its mean (0 to 1)."""

    size: Size
    brightest: int
    mean: float


def measure(mask_HW: Pixels) -> Measured:
    height, width = mask_HW.shape
    return Measured((width, height), int(mask_HW.max()), float(mask_HW.mean()) / 255)


def check(mask: Measured, size: Size) -> float:
    """The mean of a mask. Raises DataError if it is none for a picture of `size`, or nothing would count."""
    (width, height), brightest, mean = mask
    if (width, height) != size:
        turned = " (turned by its EXIF?)" if (height, width) == size else ""
        raise DataError(f"{width}x{height} pixels for a picture of {size[0]}x{size[1]}{turned}; make it of that size")
    if not brightest:
        raise DataError("all black, so that nothing of the picture counts; make white what counts, or take both away")
    if brightest <= DARK:
        raise DataError(f"its brightest value is {brightest} of 255; make white (255) what counts")
    return mean


def to_latents(mask_HW: Pixels, frame: Size, cell: int, *, box: Box, pad: bool) -> NDArray[np.float32]:
    """The mean of a mask over what each latent shows of the part `box`: (1, h, w), 0 to 1. Beside the picture it is 0.

    A latent shows `cell` x `cell` of the pixels that the part becomes, those of `frame` (width, height).
    """
    size, corner = placed(box, frame, pad=pad)
    across, down = (
        box[axis] + (np.arange(0, frame[axis] + 1, cell) - corner[axis]) * ((box[axis + 2] - box[axis]) / size[axis])
        for axis in (0, 1)
    )
    means_hw = _means(_means(mask_HW, down).T, across).T
    return (means_hw[None] / 255).astype(np.float32)


def _means(values_NW: NDArray[Any], edges: NDArray[Any]) -> NDArray[np.float64]:
    """The mean along the first axis between each two neighbouring `edges`, in pixels; outside the picture all is 0."""
    out = np.zeros((len(edges) - 1, values_NW.shape[1]))
    for i, (start, end) in enumerate(pairwise(edges)):
        at = np.arange(max(0, math.floor(start)), min(len(values_NW), math.ceil(end)))
        if len(at):
            share = np.minimum(at + 1, end) - np.maximum(at, start)  # of each pixel that lies between the edges
            out[i] = share @ values_NW[at[0] : at[-1] + 1] / (end - start)
    return out


def weights(mask_B1HW: Tensor, floor: float) -> Tensor:
    """What each place counts, (B, 1, h, w): from `floor` to 1."""
    return mask_B1HW + floor * (1 - mask_B1HW)  # in this form 1 stays 1 to the last bit


def mean_weight(mask_V1HW: Tensor, floor: float, *, normalize: bool) -> float:
    """What the weights of a picture's views are divided by: with `normalize` their mean, else 1.

    The mean is that of all views, so that a cut counts by how much of the mask it shows. If no view shows any of it, they are
    not raised to a whole picture.
    """
    return float(weights(mask_V1HW, floor).double().mean()) if normalize and mask_V1HW.any() else 1.0
