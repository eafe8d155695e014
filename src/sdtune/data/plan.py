"""What is to be encoded: of which picture which part, in which frame, mirrored or not, and which captions. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

from sdtune.data.config import DataConfig
from sdtune.data.dataset import Example
from sdtune.data.frames import Frame, Frames, resolutions
from sdtune.data.images import Box, crop_boxes
from sdtune.data.layouts import listed, plural, shown
from sdtune.errors import DataError


class View(NamedTuple):
    """One picture as it is encoded: which part of it, mirrored or not, in which colours."""

    example: int
    frame: int
    box: Box
    mirrored: bool
    colours: int
    """Which of the versions of `jittered`."""
    key: str


@dataclass
class Plan:
    """All views and captions of a set of pictures.

    An item is a picture in a frame: with several resolutions a picture has several. Every item has equally many views, in this order:
    all cuts; with `flips` all of them mirrored; then all that again in each of the other `colours`.
    """

    examples: list[Example]
    frames: list[Frame] = field(default_factory=list)
    """Those in use."""
    views_NV: list[list[View]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Each caption once; the first is the empty one."""
    captions_N: list[list[int]] = field(default_factory=list)
    """The captions of each example, by their place in `texts`."""
    crops: int = 1
    flips: bool = False
    colours: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def views(self) -> Iterator[View]:
        return (view for row in self.views_NV for view in row)


def plan(examples: Sequence[Example], config: DataConfig, *, usual: int, grid: int, augment: bool) -> Plan:
    """The plan of `examples`; `usual` is the model's resolution, `grid` the pixels that its sides are multiples of.

    Without `augment` (validation) each item has one view: not mirrored, cut in its centre instead of anywhere, and each picture has
    one item, at the first resolution. Raises DataError where that leaves nothing.
    """
    sizes = resolutions(config, usual)
    at = [Frames(resolution, config, grid=grid) for resolution in (sizes if augment else sizes[:1])]
    crop = config.crop if augment or config.crop != "random" else "center"
    out = Plan(
        list(examples), flips=config.flip and augment, colours=config.jitters if config.jitter and augment else 1
    )
    numbers, left = dict[Frame, int](), list[str]()
    for i, example in enumerate(out.examples):
        frames = list(dict.fromkeys(frame for frames in at if (frame := frames.of(example.size))))
        if not frames:
            left.append(shown(Path(example.image.name)))
        digest = example.digest
        for frame in frames:
            boxes = crop_boxes(example.size, crop, config.crops, digest, frame)
            out.crops, number = len(boxes), numbers.setdefault(frame, len(numbers))
            how = f"{_side(frame)}/{crop == 'pad'}/{config.background}"
            parts = product(range(out.colours), (False, True) if out.flips else (False,), boxes)
            out.views_NV.append(
                [
                    View(
                        i, number, box, mirrored, version, _view_key(digest, how, box, mirrored, version, config.jitter)
                    )
                    for version, mirrored, box in parts
                ]
            )
    if left and not out.views_NV:
        raise DataError(
            f"{plural(len(left), 'picture')}, and all are smaller than data.resolution={min(sizes)} and not to be enlarged "
            "(data.enlarge=false): nothing is left to train on; lower the resolution"
        )
    out.frames = list(numbers)
    _plan_texts(out)
    if left:
        out.notes.append(
            f"{plural(len(left), 'picture')} smaller than {min(sizes)} pixels, left out (data.enlarge=false): {listed(left)}"
        )
    return out


def _view_key(digest: str, how: str, box: Box, mirrored: bool, version: int, jitter: float) -> str:
    coloured = [f"{version}/{jitter}"] if version else []  # the first is the picture as it is, jitter or not
    return key_of(digest, how, *map(str, box), str(mirrored), *coloured)


def key_of(*parts: str) -> str:
    """A hash by which something in the cache is found."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def told_size(plan: Plan, view: View) -> tuple[float, ...]:
    """Height, width before; top, left of the cut after scaling; height, width after: what SDXL is told (arXiv:2307.01952, 2.2)."""
    (width, height), (left, top, right, bottom) = plan.examples[view.example].size, view.box
    frame = plan.frames[view.frame]
    cut_left = width - right if view.mirrored else left
    down, across = frame.height / (bottom - top), frame.width / (right - left)
    return (height, width, round(top * down), round(cut_left * across), frame.height, frame.width)


def _side(frame: Frame) -> str:
    return str(frame.width) if frame.width == frame.height else str(frame)


def _plan_texts(plan: Plan) -> None:
    rows = {"": 0}
    for example in plan.examples:
        plan.captions_N.append([rows.setdefault(caption, len(rows)) for caption in example.captions])
    plan.texts = list(rows)
